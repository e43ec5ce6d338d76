"""Regions of every family, in the causal model, its bare backbone and inside wrappers."""

from collections.abc import Iterator
from typing import Any

import pytest
import transformers
from helpers.small_models import FAMILIES, small_backbone, small_config, small_model
from torch import nn

from noisescope.errors import InputError, SelectionError
from noisescope.models import Regions, find_regions, layouts, register_family

LLAMA_ENDS = {"embed": ["model.embed_tokens"], "norm": ["model.norm"], "head": ["lm_head"]}
ENDS: dict[str, dict[str, list[str]]] = {
    **dict.fromkeys(FAMILIES, LLAMA_ENDS),
    "gpt2": {
        "embed": ["transformer.wte", "transformer.wpe"],
        "norm": ["transformer.ln_f"],
        "head": ["lm_head"],
    },
    "gpt_neox": {
        "embed": ["gpt_neox.embed_in"],
        "norm": ["gpt_neox.final_layer_norm"],
        "head": ["lm_head"],
    },
    "opt": {
        "embed": ["model.decoder.embed_tokens", "model.decoder.embed_positions"],
        "norm": ["model.decoder.final_layer_norm"],
        "head": ["lm_head"],
    },
    "bert": {"embed": ["bert.embeddings"], "head": ["cls"]},
}
LAYERS: dict[str, str] = {
    **dict.fromkeys(FAMILIES, "model.layers"),
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "bert": "bert.encoder.layer",
}


class Wrapper(nn.Module):
    """Holds a model one level deeper, without a configuration of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Blocks(nn.Module):
    """A model of one's own, laid out like none that is known."""

    def __init__(self, n_layers: int = 2) -> None:
        super().__init__()
        self.lookup = nn.Embedding(5, 4)
        self.tower = nn.ModuleList(nn.Linear(4, 4) for _ in range(n_layers))
        self.readout = nn.Linear(4, 5)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The registered families, as they were again after the test."""
    kept: dict[str, Any] = dict(layouts.REGISTERED)
    yield layouts.REGISTERED
    layouts.REGISTERED.clear()
    layouts.REGISTERED.update(kept)


def names(regions: Regions) -> dict[str, list[str]]:
    return {region.name: [name for name, _ in region.modules] for region in regions.all}


def expected(family: str, lead: str = "", drop: str = "", with_head: bool = True) -> dict[str, Any]:
    """The names of a family's regions, ``drop`` taken off the front and ``lead`` put there."""
    ends = {k: [lead + n.removeprefix(drop) for n in v] for k, v in ENDS[family].items()}
    layers = {str(i): [f"{lead}{LAYERS[family].removeprefix(drop)}.{i}"] for i in range(3)}
    head = {"head": ends["head"]} if with_head else {}
    norm = {"norm": ends["norm"]} if "norm" in ends else {}
    return {"embed": ends["embed"], **layers, **norm, **head}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_causal_model_has_all_regions_in_order(family: str) -> None:
    model = small_model(family)
    regions = find_regions(model)
    assert list(names(regions).items()) == list(expected(family).items())
    assert (regions.n_layers, regions.family) == (3, family)
    for region in regions.all:
        for name, module in region.modules:
            assert module is model.get_submodule(name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bare_backbone_has_them_without_prefix_and_head(family: str) -> None:
    prefix = LAYERS[family].split(".")[0] + "."
    regions = find_regions(small_backbone(family))
    assert names(regions) == expected(family, drop=prefix, with_head=False)
    assert regions.n_layers == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrapper_is_looked_through(family: str) -> None:
    regions = find_regions(Wrapper(Wrapper(small_model(family))))
    assert names(regions) == expected(family, lead="inner.inner.")
    assert regions.family == family


@pytest.mark.parametrize("family", FAMILIES)
def test_the_regions_hold_every_weight_once(family: str) -> None:
    model = small_model(family)
    held = [
        id(p)
        for r in find_regions(model).all
        for _, module in r.modules
        for p in module.parameters()
    ]
    everything = {id(p) for p in model.parameters()}
    assert set(held) == everything
    # A tied head shares its weight with the embedding; nothing else may be in two regions.
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    assert len(held) == len(everything) + tied


def test_a_wrapped_backbone_is_found_too() -> None:
    regions = find_regions(Wrapper(small_backbone("gpt2")))
    assert names(regions)["embed"] == ["inner.wte", "inner.wpe"]
    assert names(regions)["2"] == ["inner.h.2"]


def test_data_parallel_and_compiled_names_are_looked_through() -> None:
    model = nn.Module()
    model.add_module("_orig_mod", nn.Module())
    model.get_submodule("_orig_mod").add_module("module", small_model("qwen2"))
    assert names(find_regions(model)) == expected("qwen2", lead="_orig_mod.module.")


def test_a_bert_model_with_pooler_has_it_as_head() -> None:
    model = transformers.BertModel(small_config("bert"))
    assert names(find_regions(model))["head"] == ["pooler"]


def test_a_multimodal_model_has_the_layers_of_its_language_model() -> None:
    config = transformers.Gemma3Config(
        text_config=small_config("gemma3_text").to_dict(),
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
        },
        mm_tokens_per_image=4,
    )
    regions = find_regions(transformers.Gemma3ForConditionalGeneration(config))
    assert names(regions) == {
        "embed": ["model.language_model.embed_tokens"],
        **{str(i): [f"model.language_model.layers.{i}"] for i in range(3)},
        "norm": ["model.language_model.norm"],
        "head": ["lm_head"],
    }


def test_an_unknown_model_type_is_recognised_by_a_known_layout() -> None:
    model = small_model("gpt2")
    model.config.model_type = "unheard_of"
    regions = find_regions(model)
    assert names(regions) == expected("gpt2")
    assert regions.family == "like gpt2"


@pytest.mark.parametrize(
    ("family", "layers"), [("llama", "layers"), ("gpt2", "h"), ("bert", "encoder.layer")]
)
def test_an_unknown_bare_backbone_is_recognised_too(family: str, layers: str) -> None:
    model = small_backbone(family)
    model.config.model_type = "unheard_of"
    regions = find_regions(model)
    assert names(regions)["0"] == [f"{layers}.0"]
    assert regions.family == f"like {family}"


def test_a_whole_path_goes_before_the_tail_of_another_layout() -> None:
    # RoBERTa's list ends like BERT's, but its head does not.
    config = transformers.RobertaConfig(
        vocab_size=64, hidden_size=8, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.RobertaForMaskedLM(config)
    model.config.model_type = "unheard_of"
    regions = find_regions(model)
    assert regions.family == "like roberta"
    assert names(regions)["head"] == ["lm_head"]


@pytest.mark.parametrize("sense", ["vision_tower", "audio_encoder", "visual"])
def test_lists_of_other_senses_are_passed_over(sense: str) -> None:
    model = Wrapper(small_backbone("llama"))
    model.add_module(sense, small_backbone("llama", seed=1))
    assert names(find_regions(model))["0"] == ["inner.layers.0"]
    alone = nn.Module()
    alone.add_module(sense, small_backbone("llama"))
    assert names(find_regions(alone))["0"] == [f"{sense}.layers.0"]


def test_lists_inside_a_layer_or_of_a_longer_name_are_not_the_layers() -> None:
    model = small_backbone("llama")
    model.get_submodule("layers.1").add_module("layers", nn.ModuleList([nn.Linear(2, 2)]))
    model.add_module("old_layers", nn.ModuleList([nn.Linear(2, 2)]))
    assert names(find_regions(model))["1"] == ["layers.1"]


@pytest.mark.parametrize("model", [nn.Linear(2, 2), Blocks(), nn.Sequential(nn.ReLU())])
def test_a_module_of_unknown_layout_is_one_region(model: nn.Module) -> None:
    regions = find_regions(model)
    assert names(regions) == {"model": [""]}
    assert regions.all[0].modules[0][1] is model
    assert (regions.n_layers, regions.family) == (0, "")


def test_layers_without_an_embedding_are_not_taken_for_a_language_model() -> None:
    model = nn.Module()
    model.add_module("layers", nn.ModuleList([nn.Linear(2, 2)]))
    assert names(find_regions(model)) == {"model": [""]}


def test_an_unknown_family_needs_one_line(registry: dict[str, Any]) -> None:
    register_family("Blocks", "tower", embed=["lookup"], head=["readout"])
    regions = find_regions(Wrapper(Blocks()))
    assert names(regions) == {
        "embed": ["inner.lookup"],
        "0": ["inner.tower.0"],
        "1": ["inner.tower.1"],
        "head": ["inner.readout"],
    }
    assert regions.family == "Blocks"


def test_a_registered_family_goes_before_a_known_one(registry: dict[str, Any]) -> None:
    register_family("llama", "model.layers", head=["lm_head"])
    assert "embed" not in names(find_regions(small_model("llama")))


def test_a_registered_list_that_is_not_there_is_an_error(registry: dict[str, Any]) -> None:
    register_family("Blocks", "body.blocks")
    with pytest.raises(
        SelectionError,
        match=r"family 'Blocks' is registered with layers at 'body\.blocks'.*: tower",
    ):
        find_regions(Blocks())


def test_two_lists_that_fit_equally_are_an_error() -> None:
    model = nn.Module()
    for side in ("left", "right"):
        model.add_module(side, small_backbone("llama"))
    with pytest.raises(SelectionError, match=r"2 lists fit .*: left\.layers, right\.layers; say"):
        find_regions(model)


def test_a_guess_between_encoder_and_decoder_is_an_error() -> None:
    config = transformers.BartConfig(
        vocab_size=16,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=8,
    )
    with pytest.raises(SelectionError, match=r"model\.encoder\.layers, model\.decoder\.layers"):
        find_regions(transformers.BartForConditionalGeneration(config))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "layers"), "model_type '': give the model's config.model_type or its class name"),
        ((None, "layers"), "model_type None: give"),
        (("x", ""), "module name '' of family 'x': give a dotted name"),
        (("x", "model..layers"), r"module name 'model\.\.layers' of family 'x'"),
        (("x", ".layers"), r"module name '\.layers'"),
        (("x", "layers", "wte"), r"embed 'wte': give a list of dotted names, such as \['wte'\]"),
        (("x", "layers", (), "norm"), "norm 'norm': give a list"),
        (("x", "layers", (), (), "head"), "head 'head': give a list"),
        (("x", "layers", ("a.",)), r"module name 'a\.' of family 'x'"),
    ],
)
def test_a_registration_that_cannot_be_is_refused(
    registry: dict[str, Any], arguments: tuple[Any, ...], message: str
) -> None:
    before = dict(registry)
    with pytest.raises(InputError, match=message):
        register_family(*arguments)
    assert registry == before


def test_a_region_is_looked_up_by_name() -> None:
    regions = find_regions(small_model("llama"))
    assert [name for name, _ in regions.named("1").modules] == ["model.layers.1"]
    assert [name for name, _ in regions.named("head").modules] == ["lm_head"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "3",
            r"^No layer 3: this model has layers 0 to 2\. List them with 'noisescope sites MODEL'",
        ),
        ("-1", r"^No layer -1: this model has layers 0 to 2\."),
        ("embde", r"^No region 'embde': this model has layers 0 to 2 and region 'embed' and "),
        ("embde", r"did you mean 'embed'\?$"),
    ],
)
def test_a_region_that_is_not_there_is_answered_with_those_that_are(
    name: str, message: str
) -> None:
    with pytest.raises(SelectionError, match=message):
        find_regions(small_model("llama")).named(name)


def test_a_model_without_layers_says_so() -> None:
    with pytest.raises(SelectionError, match="No layer 0: this model has no layers"):
        find_regions(Blocks()).named("0")
