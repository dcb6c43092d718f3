"""Methods as recipes: YAML files that say what is compared, and how experts are grouped, aligned and combined.

    like: m-smoe
    rule: average

The files are in `mcsmoe/recipes`, outside this package, so that stages that depend on the code do not rerun when a
recipe changes. `recipe` reads and checks one, `resolved` applies all overrides, `planning` turns it into a plan.
"""
