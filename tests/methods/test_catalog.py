"""The list of methods and its README."""

import pytest

import upo.methods
from upo.methods.__main__ import README, main
from upo.methods.common.catalog import entries, losses, markdown


def test_the_readme_is_fresh():
    assert README.read_text() == markdown(), "make it again: python -m upo.methods --write"


def test_every_method_names_its_paper_and_what_it_is():
    for entry in entries():
        assert entry.title and "\n" not in entry.title
        assert entry.link or entry.name == "SFT", f"{entry.file}: the docstring has no link to a paper"


def test_the_list_has_a_line_each(capsys):
    main([])
    lines = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == sorted(upo.methods.__all__, key=str.lower)


def test_one_method_shows_equation_and_defaults(capsys):
    main(["dpo"])
    text = capsys.readouterr().out
    for part in ("arxiv.org/abs/2305.18290", "Equation 7", "beta (default 0.1): strength", "Reference: yes"):
        assert part in text


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("AOTPaired", ["aot_paired_loss"]),
        ("GuidedDPO", ["dpo_loss"]),
        ("InfoNCA", ["info_nca_loss"]),
        ("RDPO", ["rationale_loss", "dpo_loss"]),
        ("RegularizedPO", ["dpo_loss"]),
        ("UPO", ["auxiliary_loss", "kto_loss"]),
    ],
)
def test_the_equations_are_those_that_a_method_uses(name, used):
    assert [f.__name__ for f in losses(getattr(upo.methods, name))] == used


def test_an_experiment_and_readable_defaults(capsys, monkeypatch):
    monkeypatch.chdir(README.parents[2])
    main(["FDPO"])
    text = capsys.readouterr().out
    assert "--config experiments/hh/hh_stories260k_f_dpo.yaml" in text and "divergence (default JensenShannon)" in text
    main(["DPO"])
    assert "--config experiments/hh/hh_stories260k_dpo.yaml" in capsys.readouterr().out, "stories/ needs pairs first"
    main(["RegularizedPO"])
    assert "beta eta log policy(y_w|x)" in capsys.readouterr().out
    monkeypatch.chdir("/")
    main(["FDPO"])
    assert "Try it" not in capsys.readouterr().out


def test_a_wrong_name_gets_a_hint(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["DPOO"])
    assert "did you mean DPO" in capsys.readouterr().err
