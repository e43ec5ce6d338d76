"""Layouts of tensors and the tokens their rows belong to."""

import pytest
import torch
from helpers.injection import mixed
from torch import nn

from noisescope.errors import InputError
from noisescope.inject.rows import Rows
from noisescope.inject.tokens import TokenReader, sample_word


def make_rows(B, T, first_key=0, past=0, **fields):
    sample_BT = torch.arange(100, 100 + B)[:, None].expand(B, T)
    position_BT = torch.arange(past, past + T).expand(B, T)
    first_key_B = torch.full((B,), first_key)
    return Rows(0, 0, sample_BT, position_BT, first_key_B, past + T, **fields)


def table(rows, value, operator="linear", layout="channels"):
    """(sample, position, channel) of each flat row, and the kind."""
    at, kind = rows.address(value, operator, layout, site=1)
    columns = zip(at.sample_R.tolist(), at.position_R.tolist(), at.channel_R.tolist(), strict=True)
    return list(columns), kind


def each(B, T, H, D, order):
    """The table written out by hand; `order` names the axes from the outermost in."""
    sizes = {"B": range(B), "T": range(T), "H": range(H)}
    found = []
    for outer in sizes[order[0]]:
        for middle in sizes[order[1]]:
            for inner in sizes[order[2]]:
                at = dict(zip(order, (outer, middle, inner), strict=True))
                found.append((100 + at["B"], at["T"], at["H"] * D))
    return found


@pytest.mark.parametrize("B", [1, 2, 3])
@pytest.mark.parametrize("T", [1, 2, 3, 4])
@pytest.mark.parametrize("D", [2, 3, 4])
def test_tokens_times_channels_in_every_shape(B, T, D):
    rows, expected = make_rows(B, T), each(B, T, 1, D, "BTH")
    assert table(rows, torch.zeros(B, T, D)) == (expected, "token")
    assert table(rows, torch.zeros(B * T, D)) == (expected, "token")


@pytest.mark.parametrize("operator", ["matmul", "bmm", "softmax"])
@pytest.mark.parametrize("B", [1, 2])
@pytest.mark.parametrize("T", [1, 2, 3, 4])
@pytest.mark.parametrize("H", [1, 2, 3, 4])
@pytest.mark.parametrize("D", [2, 3, 4])
def test_heads_before_tokens_in_products(B, T, H, D, operator):
    expected = each(B, T, H, D, "BHT")
    assert table(make_rows(B, T), torch.zeros(B, H, T, D), operator) == (expected, "token")
    if H > 1:
        assert table(make_rows(B, T), torch.zeros(B * H, T, D), operator) == (expected, "token")


@pytest.mark.parametrize("B", [1, 2])
@pytest.mark.parametrize("T", [1, 2, 3, 4])
@pytest.mark.parametrize("H", [2, 3, 4])
def test_norms_of_heads_before_or_after_tokens(B, T, H):
    after = torch.zeros(B, T, H, 2)
    assert table(make_rows(B, T), after, "rms_norm") == (each(B, T, H, 2, "BTH"), "token")
    before = after.transpose(1, 2)
    assert table(make_rows(B, T), before, "rms_norm") == (each(B, T, H, 2, "BHT"), "token")


def test_keys_are_channels_from_the_first_one_of_each_head():
    values, kind = table(make_rows(1, 2), torch.zeros(1, 2, 2, 2), "softmax", "keys")
    assert kind == "token"
    assert [channel for _, _, channel in values] == [0, 0, 1 << 22, 1 << 22]


@pytest.mark.parametrize(
    ("past", "columns", "first_key", "channel"),
    [
        (0, 3, 0, 0),
        (0, 3, -2, -2),  # two pads on the left
        (10, 13, -2, -2),
        (10, 5, 0, 8),  # a sliding window: keys 8 to 12
        (10, 5, -2, 6),
        (10, 64, 0, 0),  # a static cache: empty columns at the end
    ],
)
def test_columns_of_scores_are_counted_from_the_key_they_show(past, columns, first_key, channel):
    rows = make_rows(1, 3, first_key=first_key, past=past)
    values, _ = table(rows, torch.zeros(1, 1, 3, columns), "softmax", "keys")
    assert {c for _, _, c in values} == {channel}


def test_fewer_tokens_than_the_pass_has_are_the_last_ones():
    values, kind = table(make_rows(2, 5), torch.zeros(2, 2, 7))
    assert values == [(100, 3, 0), (100, 4, 0), (101, 3, 0), (101, 4, 0)]
    assert kind == "token"


@pytest.mark.parametrize("shape", [(2, 9, 7), (2, 4, 6, 3, 5), (2, 6, 4, 5)])
def test_unknown_shapes_of_a_batch_keep_their_sample(shape):
    values, kind = table(make_rows(2, 3), torch.zeros(shape), "matmul")
    count = torch.Size(shape[1:-1]).numel()
    words = [mixed(100, 2), mixed(101, 2)]
    assert kind == "sample"
    assert values == [(word, row, 0) for word in words for row in range(count)]


@pytest.mark.parametrize("shape", [(5,), (), (7, 4), (1, 3, 4), (0, 4)])
def test_shapes_without_a_batch_are_rows_of_the_pass(shape):
    values, kind = table(make_rows(2, 3), torch.zeros(shape))
    word = sum(mixed(s, p) for s in (100, 101) for p in range(3)) & 0xFFFFFFFF
    count = torch.Size(shape[:-1]).numel() if shape else 1
    assert kind == "row"
    assert values == [(word, row, 0) for row in range(count)]


def test_mixed_rows_and_unnamed_samples_are_never_taken_for_tokens():
    assert table(make_rows(2, 3).mixed(), torch.zeros(6, 4))[1] == "row"
    assert table(make_rows(2, 3, is_named=False), torch.zeros(2, 3, 4))[1] == "row"


def test_rows_of_nothing_number_the_rows():
    rows = Rows.of_nothing(0, 0, torch.device("cpu"))
    assert table(rows, torch.zeros(2, 2, 3)) == ([(0, r, 0) for r in range(4)], "row")


class Model(nn.Module):
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        return input_ids


def read(reader=None, *args, **kwargs):
    return (reader or TokenReader(0, 0)).read(Model(), args, kwargs)


IDS = torch.tensor([[7, 8, 9], [5, 6, 7]])


def test_positions_count_tokens_and_not_padding():
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])
    rows = read(None, IDS, attention_mask=mask)
    assert rows.position_BT.tolist() == [[0, 0, 1], [0, 1, 1]]
    assert rows.first_key_B.tolist() == [-1, 0]


def test_given_positions_are_taken_where_no_mask_tells():
    rows = read(None, IDS, position_ids=torch.tensor([[4, 5, 6]]))
    assert rows.position_BT.tolist() == [[4, 5, 6], [4, 5, 6]]


@pytest.mark.parametrize("call", ["positional", "keyword", "mapping", "other name"])
def test_tokens_are_found_however_they_are_passed(call):
    expected = read(None, input_ids=IDS).sample_BT
    rows = {
        "positional": lambda: read(None, IDS),
        "keyword": lambda: read(None, input_ids=IDS),
        "mapping": lambda: read(None, {"input_ids": IDS}),
        "other name": lambda: read(None, idx=IDS),
    }[call]()
    assert rows.sample_BT.equal(expected)
    assert rows.is_named


def test_embeddings_without_names_number_the_batch_and_are_not_named():
    rows = read(None, inputs_embeds=torch.zeros(2, 3, 4))
    assert rows.sample_BT.tolist() == [[0] * 3, [1] * 3]
    assert not rows.is_named


def test_names_of_another_count_than_rows_are_an_error():
    reader = TokenReader(0, 0, names=("a",))
    with pytest.raises(InputError, match=r"1 samples are named, but this batch has 2 rows: call"):
        read(reader, IDS)


def test_a_number_names_the_same_sample_as_its_text():
    assert sample_word(3) == sample_word("3") != sample_word("4")


def test_calls_without_a_tensor_have_no_rows():
    assert read(None, "text") is None


class Cache:
    def __init__(self, length):
        self.length = length

    def get_seq_length(self):
        return self.length


def test_two_texts_cached_at_once_keep_their_own_prefix():
    reader, whole = TokenReader(0, 0), read(None, IDS)
    one, other = Cache(0), Cache(0)
    read(reader, IDS[:1, :2], past_key_values=one)
    read(reader, IDS[1:, :2], past_key_values=other)
    one.length = other.length = 2
    step = read(reader, IDS[:1, 2:], past_key_values=one)
    assert step.sample_BT.equal(whole.sample_BT[:1, 2:])
    assert step.is_named


def test_a_cache_filled_elsewhere_leaves_the_samples_unnamed():
    reader = TokenReader(0, 0)
    read(reader, IDS[:, :2], past_key_values=Cache(0))
    assert not read(reader, IDS[:, 2:], past_key_values=Cache(2)).is_named
