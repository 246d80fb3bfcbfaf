"""What is measured after training, and how it is reported."""
