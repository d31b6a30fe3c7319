"""Which cells a comparison is made of, and which learning rate it takes."""

from pathlib import Path

import pytest

from u2a.compare.plan import CellName, edge, finals, grid, parse_methods, pick
from u2a.types import UserError


def test_names_and_mappings():
    entries = parse_methods(
        ["uniform", {"method": "u2a", "name": "mine", "select": 20, "loss": "graddiff", "eta": 1}], "npo"
    )
    assert [(e.name, e.kind, e.loss) for e in entries] == [
        ("original", "original", "npo"),
        ("uniform", "uniform", "npo"),
        ("mine", "u2a", "graddiff"),
    ]
    assert (entries[2].method.select, entries[2].method.eta) == ("20", 1.0)


def test_the_original_comes_first_once():
    entries = parse_methods(["uniform", {"method": "original", "name": "as it was"}], "npo")
    assert [e.name for e in entries] == ["as it was", "uniform"]


@pytest.mark.parametrize(
    "given, message",
    [
        (["ppo"], "'ppo' is unknown; take some of original, u2a"),
        ([{"name": "x"}], "the key `method`"),
        ([3], "the key `method`"),
        ([{"method": "u2a", "lambda": 3}], "u2a has no option 'lambda'; it has: select, eta"),
        ([{"method": "climb", "x": 3}], "it has: none"),
        ([{"method": "u2a", "eta": "big"}], "eta of u2a is 'big'; it must be a float"),
        ([{"method": "kto", "weighted": 1}], "must be a bool"),
        ([{"method": "d2o", "samples": True}], "must be a int"),
        (["u2a", "u2a"], "two are called 'u2a'"),
        ([{"method": "u2a", "name": "../x"}], "letters, digits, spaces"),
        ([{"method": "u2a", "loss": "nope"}], "nope"),
        ([{"method": "u2a", "rate": "fast"}], "rate of u2a is 'fast'"),
        ([{"method": "u2a", "rate": float("nan")}], "rate of u2a is nan"),
        ([{"method": "u2a", "rate": True}], "rate of u2a is True"),
        ([{"method": "original", "rate": 1e-4}], "original has no option 'rate'"),
        ([{"method": "u2a", "outer_steps": 0}], "methods: u2a: outer_steps is 0: must be at least 1"),
        ([{"method": "u2a", "name": "mine", "select": "lots"}], "mine: select is 'lots': take a percentage"),
        ([{"method": "random-k", "select": "0%"}], "select is '0%': take a percentage"),
        ([{"method": "selected", "select": 0}], "select is '0': take a percentage"),
        ([{"method": "kto", "select": "nan%"}], "select is 'nan%': take a percentage"),
        ([{"method": "u2a", "eta": -0.5}], "eta is -0.5: must be at least 0"),
        ([{"method": "weights", "eta": float("nan")}], "eta is nan: must be finite"),
        ([{"method": "u2a", "rho": -1}], "rho is -1.0: must be at least 0"),
        ([{"method": "u2a", "joint": -1}], "joint is -1.0: must be at least 0"),
        (
            [{"method": "dpo", "pairs": "valdation"}],
            "dpo: pairs is 'valdation': take one of training, validation",
        ),
        ([{"method": "sft", "pairs": ""}], "pairs is '': take one of training, validation"),
        (
            [{"method": "kto", "undesirable": "bad"}],
            "kto: undesirable is 'bad': take one of rejected, negatives",
        ),
        ([{"method": "kto", "weighted": True}], "kto: weighted is for negatives"),
        ([{"method": "dpo", "beta": 0}], "beta is 0.0: must be above 0"),
        ([{"method": "d2o", "samples": 0}], "samples is 0: must be at least 1"),
        ([{"method": "d2o", "longest": 0}], "longest is 0: must be at least 1"),
        ([{"method": "rloo", "samples": 1}], "rloo: samples is 1: must be at least 2"),
        ([{"method": "rloo", "beta": -0.1}], "beta is -0.1: must be at least 0"),
        ([{"method": "retrain", "epochs": 0}], "epochs is 0.0: must be above 0"),
        ([{"method": "retrain", "rate": 0}], "rate is 0.0: must be above 0"),
    ],
)
def test_what_cannot_be_compared(given, message):
    with pytest.raises(UserError, match=message):
        parse_methods(given, "npo")


def test_cells_of_a_method():
    original, uniform, retrain = parse_methods(["uniform", {"method": "retrain", "pretrained": "x"}], "npo")
    assert [c.file for c in grid(uniform, [1e-4, 2e-4], 3)] == [
        "uniform-0.0001-grid.json",
        "uniform-0.0002-grid.json",
    ]
    assert all(c.seed == 3 and not c.final for c in grid(uniform, [1e-4, 2e-4], 3))
    assert grid(uniform, [1e-4], 3) == []
    assert grid(original, [1e-4, 2e-4], 3) == []
    assert grid(retrain, [1e-4, 2e-4], 3) == []
    assert finals(uniform, 2e-4, [3, 4]) == [
        CellName("uniform", 2e-4, 3, True),
        CellName("uniform", 2e-4, 4, True),
    ]
    assert [c.file for c in finals(original, 0.0, [3, 4])] == ["original-0-seed-3.json"]


def test_a_rate_of_its_own_needs_no_grid():
    _, uniform = parse_methods([{"method": "uniform", "rate": "3e-4"}], "npo")  # YAML's text
    assert uniform.rate == 3e-4
    assert grid(uniform, [1e-4, 2e-4], 0) == []
    assert "rate" not in uniform.settings  # a cell says its rate itself
    _, retrain = parse_methods([{"method": "retrain", "pretrained": "x", "rate": 1e-5}], "npo")
    assert retrain.method.rate == 1e-5  # the fine-tuning's
    assert retrain.rate == 0.0


def test_which_rates_are_an_end_of_the_grid():
    original, uniform = parse_methods(["uniform"], "npo")
    rates = [1e-4, 2e-4, 4e-4]
    assert [edge(uniform, rate, rates) for rate in rates] == ["smallest", "", "largest"]
    assert edge(uniform, 1e-4, [1e-4]) == ""  # nothing was picked
    assert edge(original, 0.0, rates) == ""
    _, given = parse_methods([{"method": "uniform", "rate": 4e-4}], "npo")
    assert edge(given, 4e-4, rates) == ""


START = {"objective": -0.7, "utility": -2.0}


def cell(*looks):
    """Of (gain of J, rise of the retain NLL) at each look."""
    return {"points": [{"objective": -0.7 + gain, "utility": -2.0 - rise} for gain, rise in looks]}


def test_the_rate_of_the_largest_j_where_margins_are_compared():
    """At a rise of 0.02: 0.1, taken at its end; 0.1 + (0.3 - 0.1) / 2 = 0.2; a fifth of 0.8 = 0.16."""
    cells = {
        1e-4: cell((0.05, 0.0), (0.1, 0.01)),
        2e-4: cell((0.1, 0.0), (0.3, 0.04)),
        4e-4: cell((0.8, 0.1)),
    }
    assert pick(cells, START, 0.02, 0.2) == 2e-4
    assert pick(cells, START, 0.1, 0.2) == 4e-4
    assert pick({rate: cells[rate] for rate in (1e-4, 4e-4)}, START, 0.02, 0.2) == 4e-4


def test_rates_past_the_cap_at_the_end_are_left_out_whatever_they_gained_before():
    cells = {1e-4: cell((0.1, 0.0), (0.1, 0.01)), 4e-4: cell((0.5, 0.0), (0.6, 0.3))}
    assert pick(cells, START, 0.02, 0.3 + 1e-9) == 4e-4
    assert pick(cells, START, 0.02, 0.1) == 1e-4


def test_the_smallest_rate_where_none_keeps_the_cap():
    assert pick({2e-4: cell((0.7, 1.0)), 1e-4: cell((-0.3, 1.0))}, START, 0.02, 0.1) == 1e-4


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../../x",
            "..",
            ".",
            "",
            "/etc/passwd",
            "a/b",
            "a\\b",
            "C:x",
            "~",
            "-rf",
            ".bashrc",
            "x\0",
            "x\ny",
        ),
        *("\x1b[31m", "x\u202ey", "a" * 61, "CON\t"),
    ],
)
def test_no_name_leads_out_of_the_folder(name):
    with pytest.raises(UserError, match="letters, digits, spaces"):
        parse_methods([{"method": "u2a", "name": name}], "npo")


def test_a_name_cannot_end_in_another_folder():
    """Dots are allowed, and lead nowhere: what is made of a name is one file's name."""
    entry = parse_methods([{"method": "u2a", "name": "v1..2"}], "npo")[1]
    for cell in (*finals(entry, 1e-4, [0]), *grid(entry, [1e-4, 2e-4], 0)):
        assert Path(cell.file).name == cell.file


def test_a_rate_whose_answers_run_in_circles_is_not_picked():
    """Cells of before repetition was measured count as if it had not risen."""
    start = {"objective": -0.7, "utility": -2.0}

    def cell(objective, **more):
        return {"points": [{"objective": objective, "utility": -2.01}], **more}

    cells = {
        1e-4: cell(-0.6),
        2e-4: cell(-0.5, repetition_rise=0.05),
        4e-4: cell(-0.4, repetition_rise=0.3),
    }
    assert pick(cells, start, 0.02, 0.1, 0.1) == 2e-4
    assert pick(cells, start, 0.02, 0.1) == 4e-4
    assert pick({4e-4: cells[4e-4], 8e-4: cells[4e-4]}, start, 0.02, 0.1, 0.1) == 4e-4
