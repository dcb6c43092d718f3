"""A method is a recipe, a YAML file: what is compared, how experts are grouped, aligned and combined.

    like: m-smoe
    rule: average

`recipe` reads and checks one, `resolved` applies all that changes it, `collecting` measures what recipes draw on, and
`planning` makes a plan of a recipe and of statistics.
"""
