from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mcsmoe.calibration.statistics import LayerStatistics, RoutingStatistics
from mcsmoe.errors import CheckpointError, ParameterError, StatisticsError, UnknownNameError, UserError
from mcsmoe.families import TensorSource, excluded_layers, sparse_layers
from mcsmoe.methods.planning import make_plan
from mcsmoe.methods.recipe import Recipe, known_recipes, load_recipe, validate_recipes
from mcsmoe.methods.resolved import ResolvedMethod
from mcsmoe.params import Params
from tests.methods.params import small_params
from tests.models import EXPERTS, tiny_switch
from tests.mutations import COUNT, mutated, right_or_one_line

METHODS = ["none", "m-smoe", "average", "one"]
TABLE_2 = ["pruning", "task-specific", "averaging", "zipit", "repair", "git-rebasin", "m-smoe"]


def params(**changes: Any) -> Params:
    return Params.parse(small_params() | changes)


def layers():
    return sparse_layers(tiny_switch().config)


def statistics(experts: int = EXPERTS) -> RoutingStatistics:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for layer in layers():
        sums = LayerStatistics.zeros(experts, 32)
        sums.coselection += torch.diag(torch.randint(0, 50, (experts,), generator=generator).double())
        sums.tokens += sums.counts.sum()
        logits = torch.randn(30, experts, generator=generator, dtype=torch.float64)
        sums.logits_gram += logits.T @ logits
        made[layer.name] = sums
    return RoutingStatistics(made)


class NoTensors(TensorSource):
    """A checkpoint that must not be read: these recipes look at statistics only."""

    def tensor(self, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")


def model() -> Any:
    return SimpleNamespace(layers=layers(), checkpoint=NoTensors(), fingerprint={"router": "a", "tokenizer": "b"})


def plan(method: str, **changes: Any):
    values = params(**changes)
    return make_plan(method, load_recipe(method, values.recipes), values.merge, statistics(), model())


def test_every_recipe_of_the_package_loads():
    assert set(METHODS) <= set(known_recipes())
    for name in known_recipes():
        load_recipe(name, params().recipes)


def test_the_methods_of_the_papers_table_differ_only_where_they_say():
    """Groups, budget and training are those of m-smoe; alignment, rule and router policy are what is compared."""
    shared = {"similarity": "router-logits", "grouping": "routing-guided", "groups": None, "budget": None}
    for name in TABLE_2:
        recipe = load_recipe(name, params().recipes).model_dump()
        assert {key: recipe[key] for key in shared} == shared, name
        assert recipe["router"] == ("exclude" if name == "task-specific" else "map"), name


def test_what_the_recipes_do():
    merged, average, one, none = (plan(name) for name in ("m-smoe", "average", "one", "none"))
    assert (merged.rule, merged.alignment) == ("frequency", "weight")
    assert (average.rule, average.alignment) == ("average", "none")
    assert average.layers == merged.layers
    assert set(one.experts.values()) == {1}
    assert sum(merged.experts.values()) == 2 * len(layers())
    assert all(not layer.merged for layer in none.layers.values())


def test_a_recipe_can_be_changed_in_params():
    values = params(recipes={"m-smoe": {"rule": "average"}})
    assert load_recipe("m-smoe", values.recipes).rule == "average"
    assert load_recipe("m-smoe", values.recipes).alignment == "weight"
    assert load_recipe("m-smoe-uniform", values.recipes).rule == "frequency"  # what is like a recipe is like its file


def test_a_recipe_of_its_own_is_a_file():
    """dvc keeps track of a recipe by its file: one that stands only in params.yaml could not be re-run."""
    with pytest.raises(UnknownNameError, match="'mine'; known: average"):
        validate_recipes(params(recipes={"mine": {"rule": "average"}}))


def test_the_ablations_of_the_budget_and_of_the_router():
    uniform, pruned, dropped = (plan(name) for name in ("m-smoe-uniform", "pruning-excluded", "task-specific"))
    assert set(uniform.experts.values()) == {2}
    assert pruned.experts == plan("m-smoe").experts
    for name, layer in pruned.layers.items():
        kept = [group.dominant for group in layer.groups]
        assert kept == [group.dominant for group in plan("m-smoe").layers[name].groups]
        assert sorted([*kept, *layer.dropped]) == list(range(EXPERTS))
        assert layer.expert_map.tolist() == [kept.index(e) if e in kept else -1 for e in range(EXPERTS)]
    assert dropped.keep == 2 * len(layers())
    assert all(not layer.merged for layer in dropped.layers.values())


def test_unknown_method():
    with pytest.raises(UnknownNameError, match="unknown method 'm-smo'; known: average, averaging, by-"):
        validate_recipes(params(methods={"merge": ["m-smo"], "distill": [], "compress": [], "dense": []}))


@pytest.mark.parametrize(
    "key", ["similarity", "grouping", "alignment", "reference", "rule", "importance", "router", "budget"]
)
def test_unknown_part_of_a_recipe(key: str):
    with pytest.raises(UnknownNameError, match=rf"recipes\.m-smoe\.{key} 'nonsense'; known: "):
        load_recipe("m-smoe", params(recipes={"m-smoe": {key: "nonsense"}}).recipes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m-smoe": {"rul": "average"}}, r"recipes\.m-smoe\.rul = 'average'"),
        ({"m-smoe": {"groups": "many"}}, r"recipes\.m-smoe\.groups = 'many'"),
        ({"one": {"progressive": "perhaps"}}, r"recipes\.one\.progressive"),
    ],
)
def test_bad_recipe(change: dict[str, Any], message: str):
    with pytest.raises(ParameterError, match=message):
        load_recipe(next(iter(change)), params(recipes=change).recipes)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The directory of the user's own recipes."""
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    return Path("recipes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("like: mine", r"^recipes\.mine\.like = 'mine' in recipes/mine\.yaml: no recipe .* itself: mine → mine$"),
        ("like: yours", r"^recipes\.yours\.like = 'mine' in recipes/yours.*: mine → yours → mine$"),
        ("like: m-smo", "^unknown method 'm-smo'; known: .*; did you mean 'm-smoe'"),
        ("like: [m-smoe]", r"^recipe = 'mine' in recipes/mine\.yaml: must be `key: value` lines; `like` names another"),
        ("- like", r"^recipe = 'mine' in recipes/mine\.yaml: must be `key: value` lines"),
        ("", r"^recipe = 'mine' in recipes/mine\.yaml: must be `key: value` lines"),
        ("like: m-smoe\nlike: one", r"^recipe = 'mine' in recipes/mine\.yaml: the key 'like' twice .line 2.$"),
        (
            "like: m-smoe\nruel: average",
            r"^recipes\.mine\.ruel = 'average' in recipes/mine\.yaml: unknown key; .*did you mean 'rule'",
        ),
        ("like: m-smoe\nrule: avarage", "'avarage'; known: .*; did you mean 'average'"),
        ("rule: average", r"^recipes/mine\.yaml: recipes\.mine\.similarity is missing$"),
        ("like: m-smoe\ngroups: true", r"^recipes\.mine\.groups = True in recipes/mine\.yaml: a number"),
    ],
)
def test_a_file_that_is_no_recipe(own, text, message):
    (own / "mine.yaml").write_text(text)
    (own / "yours.yaml").write_text("like: mine")
    with pytest.raises(UserError, match=message):
        load_recipe("mine")


def test_a_recipe_named_like_a_directory_above_is_not_seen(own):
    for name in ("..", ".hidden"):
        (own / f"{name}.yaml").write_text("like: m-smoe")
        with pytest.raises(UnknownNameError):
            load_recipe(name)


def test_damaged_recipes_are_one_line(own):
    mine, resolved = own / "mine.yaml", own / "m-smoe.yaml"
    whole = b"like: m-smoe\nrule: average  # plain\ngroups: 2.5\nbudget: uniform\nprogressive: false\n"
    ResolvedMethod.of("m-smoe", params()).save(resolved)
    assert isinstance(ResolvedMethod.load(resolved).recipe, Recipe)
    other = resolved.read_bytes()
    for seed in range(COUNT):
        mine.write_bytes(mutated(whole, seed))
        resolved.write_bytes(mutated(other, seed))
        with right_or_one_line():
            load_recipe("mine")
        with right_or_one_line():
            ResolvedMethod.load(resolved)


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ({"groups": EXPERTS + 1}, "^groups = 9"),
        ({"groups": EXPERTS + 1, "budget": "uniform"}, "^groups = 9"),
        ({"exclude": {"encoder": [2], "decoder": []}}, r"^exclude\.encoder = 2.*sparse are \[1, 3\]"),
    ],
)
def test_budget_or_layer_that_is_not_there(merge: dict[str, Any], message: str):
    values = params(merge=small_params()["merge"] | merge)
    with pytest.raises(ParameterError, match=message):
        validate_recipes(values, layers())


def test_groups_of_a_recipe_are_checked_under_its_own_name():
    with pytest.raises(ParameterError, match=r"^recipes\.one\.groups = 0"):
        validate_recipes(params(recipes={"one": {"groups": 0}}), layers())


@pytest.mark.parametrize(
    ("method", "also", "message"),
    [
        ("by-mse", ["outputs"], r"^also = .*similarity 'mse' of method 'by-mse' needs 'pair-errors' in it"),
        ("m-smoe-fisher", [], r"^also = .*rule 'fisher' of method 'm-smoe-fisher' needs 'gradients' in it"),
    ],
)
def test_what_a_method_needs_must_be_collected(method: str, also: list[str], message: str):
    methods = {"merge": [method], "distill": [], "compress": [], "dense": []}
    collect = small_params()["collect"]
    with pytest.raises(ParameterError, match=message):
        validate_recipes(params(methods=methods, collect=collect | {"also": also}))
    validate_recipes(params(methods=methods, collect=collect | {"also": ["pair-errors", "gradients"]}))


def test_capacity_is_for_groupings_that_keep_to_it_and_not_for_the_control():
    merge = small_params()["merge"] | {"capacity": 5}
    methods = {"merge": ["m-smoe", "one"], "distill": [], "compress": [], "dense": []}
    validate_recipes(params(methods=methods, merge=merge), layers())
    with pytest.raises(ParameterError, match=r"^capacity = 5: .*'k-means' of method 'grouped-k-means' cannot"):
        validate_recipes(params(methods=methods | {"merge": ["grouped-k-means"]}, merge=merge), layers())
    with pytest.raises(ParameterError, match=r"^capacity = 3: .*gives 8 groups where 12 are needed"):
        validate_recipes(params(methods=methods, merge=merge | {"capacity": 3}), layers())


def test_excluded_layers():
    exclude = params(merge=small_params()["merge"] | {"exclude": {"encoder": [1], "decoder": [3]}}).merge.exclude
    assert excluded_layers(exclude, layers()) == ["encoder.1", "decoder.3"]


def test_statistics_of_another_checkpoint():
    values = params()
    recipe = load_recipe("m-smoe", values.recipes)
    with pytest.raises(CheckpointError, match=r"\(16, 32\), in the model \(8, 32\)"):
        make_plan("m-smoe", recipe, values.merge, statistics(EXPERTS * 2), model())
    theirs = statistics()
    theirs.provenance["model"] = {"router": "a", "tokenizer": "c"}
    with pytest.raises(StatisticsError, match="another model: this one has a different tokenizer"):
        make_plan("m-smoe", recipe, values.merge, theirs, model())
