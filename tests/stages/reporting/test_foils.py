"""The table of foils."""

from stages.reporting.foils import foil_rows


def test_a_number_that_an_evaluation_of_before_did_not_write_is_none() -> None:
    values = {"foils": 1200, "true_first": 61.25, "guilty_by_score": 50.0, "guilty_by_gate": None, "chance": 9.5}
    rows = foil_rows({"colour": values})
    assert rows == [{"name": "colour", "cells": ["1,200", "61.2", "\N{EN DASH}", "50.0", "\N{EN DASH}", "9.5"]}]
