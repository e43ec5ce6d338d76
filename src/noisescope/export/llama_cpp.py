r"""llama.cpp's `--tensor-type-file`: lines of regular expression, ``=``, and type of a tensor.

llama-quantize splits the file at white space, searches each tensor's name for each expression, and
takes the first that is found; so expressions are anchored. The grammar has no comments: what a user
must know stands in the notes.
"""

from collections.abc import Iterable

from noisescope.assignment import Assignment
from noisescope.export.gguf_names import ARCHITECTURES, ROUTERS, tensor_names
from noisescope.export.patterns import check_targets, exact_patterns
from noisescope.export.scheme import (
    Export,
    NotExpressible,
    Scheme,
    check_names,
    read_scheme,
    refuse,
)

ENGINE = "llama.cpp"
_ACCEPTED = (
    "int8, int4, int5 (tensor, channel, groups of 32 and its multiples), int4 and int5 also "
    "asymmetric, mxfp4, nvfp4, bf16, fp16"
)
_OWN = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
_FLOATS = {"bf16": "bf16", "fp16": "f16"}
# Symmetric: scale and codes. Asymmetric: scale, smallest value and codes. Blocks of 32.
_INTEGERS = {
    ("int8", True): "q8_0",
    ("int5", True): "q5_0",
    ("int5", False): "q5_1",
    ("int4", True): "q4_0",
    ("int4", False): "q4_1",
}
_BLOCK = 32
# Bits per weight, scales counted.
BITS = {
    "q8_0": 8.5,
    "q5_1": 6.0,
    "q5_0": 5.5,
    "q4_1": 5.0,
    "q4_0": 4.5,
    "nvfp4": 4.5,
    "mxfp4": 4.25,
    "bf16": 16.0,
    "f16": 16.0,
    "f32": 32.0,
}
_COMMAND = (
    "give it to llama-quantize --tensor-type-file llama_cpp_tensor_types.txt "
    "--token-embedding-type {own} MODEL.gguf OUT.gguf Q8_0; the types in it are taken where the "
    "last word is a quantised type, which is what other tensors get"
)
_TIED_NOTE = (
    "the head is output.weight; where it is tied to the embedding, the file has token_embd.weight "
    "alone, and --token-embedding-type sets both"
)
_NVFP4_NOTE = (
    "llama-quantize writes nvfp4 without a tensor scale: where weights are small, its scales are "
    "subnormal E4M3 numbers and coarser than the format's"
)
_SCALE_NOTE = (
    "scales of q8_0, q4_0, q4_1, q5_0 and q5_1 are float16, where the format's are float32"
)


def llama_cpp(assignment: Assignment, names: Iterable[str]) -> Export:
    """Returns the file of tensor types.

    Args:
        assignment: The assignment; of weights alone.
        names: Names of all modules of the model.

    Raises:
        InputError: A module is none of the model's, or a format is unknown.
        NotExpressible: Activations are to be rounded; no type is the format or finer on the same
            codes; the family or a module has no known tensor; experts of a layer differ.
    """
    check_names(assignment, names)
    if assignment.operand != "weights":
        raise NotExpressible(
            f"{ENGINE}: operand {assignment.operand!r}: its types are of weights alone; recommend "
            "for operand 'weights'"
        )
    types = _tensor_types(assignment)
    groups: dict[str, list[str]] = {}
    for tensor, kind in types.items():
        groups.setdefault(kind, []).append(f"{tensor}.weight")
    targets = {kind: exact_patterns(tensors) for kind, tensors in groups.items()}
    owners = {tensor: kind for kind, tensors in groups.items() for tensor in tensors}
    check_targets(targets, owners, ())
    lines = [f"{pattern}={kind}" for kind, given in targets.items() for pattern in given]
    text = "".join(f"{line}\n" for line in lines)
    return Export("llama_cpp_tensor_types.txt", text, tuple(_notes(assignment, types)))


def _tensor_types(assignment: Assignment) -> dict[str, str]:
    """Returns the type of each tensor: of assigned modules, then of kept ones.

    Kept modules are named too: what no line names gets the command's own type.
    """
    if assignment.model_type not in ARCHITECTURES:
        raise NotExpressible(
            f"{ENGINE}: names of tensors of model_type {assignment.model_type!r} are not known "
            f"here; known are {', '.join(ARCHITECTURES)}"
        )
    wanted = {name: _ggml_type(read_scheme(f)) for name, f in assignment.formats.items()}
    own = _OWN[assignment.dtype]
    types: dict[str, str] = {}
    for module, kind in (wanted | dict.fromkeys(assignment.kept, own)).items():
        tensors = tensor_names(module)
        if not tensors:
            raise NotExpressible(f"{ENGINE}: module {module!r} has no tensor that is known here")
        for tensor in tensors:
            if types.setdefault(tensor, kind) != kind:
                raise NotExpressible(
                    f"{ENGINE}: module {module!r} shares tensor {tensor!r} with another expert of "
                    f"another type ({types[tensor]} and {kind}); give a layer's experts one format"
                )
            if tensor.rpartition(".")[2] in ROUTERS and BITS[kind] < 16:
                raise NotExpressible(
                    f"{ENGINE}: module {module!r} is a router, which is never quantised; keep it"
                )
    return types


def _ggml_type(scheme: Scheme) -> str:
    """Returns the type whose rounding is the format's, or has the same codes and nearer scales."""
    if scheme.scale == "cast" and scheme.element in _FLOATS:
        return _FLOATS[scheme.element]
    if scheme.scale == "nvfp4":
        return "nvfp4"
    if scheme.scale == "mx" and scheme.element == "fp4_e2m1" and not scheme.is_ceil:
        return "mxfp4"
    fits = scheme.scale in ("tensor", "channel") or (
        scheme.scale == "group" and scheme.group % _BLOCK == 0
    )
    kind = _INTEGERS.get((scheme.element, scheme.is_symmetric))
    if kind is None or not fits:
        raise refuse(ENGINE, scheme, "weights", _ACCEPTED)
    return kind


def _notes(assignment: Assignment, types: dict[str, str]) -> Iterable[str]:
    yield _COMMAND.format(own=_OWN[assignment.dtype])
    kinds = set(types.values())
    for given in dict.fromkeys(assignment.formats.values()):
        scheme = read_scheme(given)
        kind = _ggml_type(scheme)
        if scheme.is_integer and scheme.group != _BLOCK:
            yield f"{given} is written as {kind}: a scale per {_BLOCK} weights, {BITS[kind]} bits"
    if kinds & set(_INTEGERS.values()):
        yield _SCALE_NOTE
    if "nvfp4" in kinds:
        yield _NVFP4_NOTE
    if "output" in types:
        yield _TIED_NOTE
