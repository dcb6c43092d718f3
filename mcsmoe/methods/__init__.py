"""A method is a recipe, a YAML file: what is compared, how experts are grouped, aligned and combined.

    like: m-smoe
    rule: average

The files lie in `mcsmoe/recipes`, apart from this code: a stage that depends on the code does not run again for each of
them. `recipe` reads and checks one, `resolved` applies all that changes it, `planning` makes a plan of it.
"""
