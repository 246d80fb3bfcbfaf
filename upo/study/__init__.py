"""Many runs from one file: what they are, the processes they run in, what became of them."""
