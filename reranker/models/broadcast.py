"""The broadcasting encoder: one query read once, many texts that each read it.

ETR's architecture (Efficient Title Reranker via Broadcasting Query Encoder, arXiv 2312.12430),
used here for titles and for passages. The query's tokens attend to the query only. A text's
tokens attend to the query's keys and values of the same layer *and* to their own text; no text
sees another. With a bias of minus infinity on the texts' attention to the query the network is
an ordinary bi-encoder, which is what it starts as (`start="bi-encoder"`).

A text's score is scale x cosine of its mean state and the query's, plus a linear head. Passages
add a late interaction over single tokens, as in ColBERT (Khattab and Zaharia 2020, arXiv
2004.12832): how near some token of the text comes to each token of the query. It finds the one
sentence that answers, which a mean over all of a passage's tokens dilutes.

A network with `sinks` leaves out the [CLS] and [SEP] of its texts, which are a third of a short
title's tokens. What they were for, a place where heads rest that have nothing to read (Xiao et al.
2023, arXiv 2309.17453), are two learned keys and values a layer, the same for all texts.

Shapes: B queries of Q tokens, N texts of T tokens, L layers, A heads of D units, H = A * D.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

# A query's ids (1, Q) without padding, and its texts' ids and mask, (N, T) each.
List = tuple[Tensor, Tensor, Tensor]

SINKS = 2  # one for [CLS], one for [SEP]
_NEVER = -1e4  # a logit that no bf16 softmax gives any weight
_WIDER = 8  # units that a head has more in fused attention: kernels want multiples of eight


@dataclass(frozen=True)
class BroadcastConfig:
    """What fixes the shape of the network; the defaults are all-MiniLM-L6-v2's."""

    layers: int = 6
    hidden: int = 384
    heads: int = 12
    intermediate: int = 1536
    vocabulary: int = 30522
    positions: int = 512
    token_types: int = 2
    norm_epsilon: float = 1e-12
    start: Literal["bi-encoder", "scratch"] = "bi-encoder"
    query_bias: float = -2.0  # initial bias on the texts' attention to the query
    first_query_layer: int = 0  # layers below see the text alone, whatever the query
    scale: float = 20.0  # initial scale of the cosine
    # Initial scale of the late interaction; None: the network has none. Where it has one, the
    # mean states' cosine counts `mean_match` at first, and `scale` is the dual encoder's alone.
    token_match: float | None = None
    mean_match: float = 3.0
    sinks: bool = False  # two learned keys and values a layer for the texts' [CLS] and [SEP]

    def __post_init__(self) -> None:
        """Raises ValueError for what does not fit together."""
        if self.sinks and self.start != "bi-encoder":
            raise ValueError(
                "a network from scratch scores a text by its [CLS], so that it cannot have sinks: "
                'give start = "bi-encoder"'
            )

    def as_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values."""
        return asdict(self)


class QueryStates(NamedTuple):
    """All that the texts need of the encoded queries."""

    keys: list[Tensor]  # per layer (B, A, Q, D)
    values: list[Tensor]  # per layer (B, A, Q, D)
    mask: Tensor  # (B, Q), True where there is a token
    pooled: Tensor  # (B, H), the mean of the last layer's states
    tokens: Tensor  # (B, Q, H), the last layer's states, scaled to length 1
    weights: Tensor  # (B, Q), what each token counts in the late interaction; they sum to 1


class Layer(nn.Module):
    """One post-norm BERT layer whose attention may also read a query's keys and values."""

    def __init__(self, config: BroadcastConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.heads = config.heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.norm_epsilon)
        self.up = nn.Linear(hidden, config.intermediate)
        self.down = nn.Linear(config.intermediate, hidden)
        self.norm = nn.LayerNorm(hidden, eps=config.norm_epsilon)

    def split(self, x: Tensor) -> Tensor:
        """(N, T, H) -> (N, A, T, D)."""
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def finish(self, x: Tensor, context: Tensor) -> Tensor:
        """All that follows the attention: x (N, T, H), context (N, A, T, D) -> (N, T, H)."""
        x = self.attention_norm(x + self.output(context.transpose(1, 2).flatten(2)))
        out: Tensor = self.norm(x + self.down(F.gelu(self.up(x))))
        return out


class BroadcastEncoder(nn.Module):
    """Scores texts against a query that is encoded once; see the module's docstring."""

    def __init__(self, config: BroadcastConfig) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocabulary, config.hidden)
        self.positions = nn.Embedding(config.positions, config.hidden)
        self.types = nn.Embedding(config.token_types, config.hidden)
        self.embedding_norm = nn.LayerNorm(config.hidden, eps=config.norm_epsilon)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        bias = config.query_bias if config.start == "bi-encoder" else 0.0
        self.query_bias = nn.Parameter(torch.full((config.layers, config.heads), bias))
        self.scale = nn.Parameter(torch.tensor(config.scale))
        self.head = nn.Linear(config.hidden, 1)
        if config.start == "bi-encoder":
            nn.init.zeros_(self.head.weight)
        else:
            nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        if config.sinks:
            size = config.hidden // config.heads
            shape = (config.layers, config.heads, SINKS, size)
            self.sink_keys = nn.Parameter(torch.zeros(shape))
            self.sink_values = nn.Parameter(torch.zeros(shape))
        if config.token_match is not None:
            self.token_match = nn.Parameter(torch.tensor(config.token_match))
            self.mean_match = nn.Parameter(torch.tensor(config.mean_match))
            # How much a query's token counts, from its state; all the same at first.
            self.token_weight = nn.Parameter(torch.zeros(config.hidden))

    def embed(self, ids: Tensor, first_position: Tensor | int, token_type: int) -> Tensor:
        """Ids (N, T) -> states (N, T, H); `first_position` may differ per row, shape (N, 1)."""
        places = torch.arange(ids.shape[1], device=ids.device) + first_position
        x = self.words(ids) + self.positions(places) + self.types.weight[token_type]
        out: Tensor = self.embedding_norm(x)
        return out

    def encode_query(self, ids: Tensor, mask: Tensor) -> QueryStates:
        """Read the queries: ids and mask (B, Q)."""
        x = self.embed(ids, 0, 0)  # (B, Q, H)
        seen = mask[:, None, None, :]  # (B, 1, 1, Q)
        keys, values = [], []
        for module in self.layers:
            layer: Layer = module  # type: ignore[assignment]
            q, k = layer.split(layer.query(x)), layer.split(layer.key(x))
            v = layer.split(layer.value(x))  # all (B, A, Q, D)
            keys.append(k)
            values.append(v)
            logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, A, Q, Q)
            weights = logits.masked_fill(~seen, float("-inf")).softmax(-1)
            x = layer.finish(x, weights @ v)
        pooled = mean_state(x, mask)
        weights = mask / mask.sum(1, keepdim=True)
        if self.config.token_match is not None:
            weights = (x @ self.token_weight).masked_fill(~mask, float("-inf")).softmax(-1)
        return QueryStates(keys, values, mask, pooled, F.normalize(x, dim=-1), weights)

    def score(
        self, query: QueryStates, ids: Tensor, mask: Tensor, owner: Tensor | None = None
    ) -> Tensor:
        """Logits (N,) of texts, ids and mask (N, T).

        With one query (B = 1) all texts share its keys and values in one matmul per layer.
        With several, `owner` (N,) names each text's query.
        """
        x, mask = self.text_states(query, ids, mask, owner)  # (N, T, H)
        pooled = self.pool(x, mask)  # (N, H)
        against = query.pooled if owner is None else query.pooled[owner]
        logit = self.head(pooled).squeeze(-1)
        if self.config.start == "bi-encoder":
            late = self.config.token_match is not None
            scale = self.mean_match if late else self.scale
            logit = logit + scale * F.cosine_similarity(pooled, against, dim=-1)
        if self.config.token_match is not None:
            logit = logit + self.token_match * self.token_matches(query, x, mask, owner)
        out: Tensor = logit
        return out

    @staticmethod
    def token_matches(
        query: QueryStates, x: Tensor, mask: Tensor, owner: Tensor | None = None
    ) -> Tensor:
        """Mean over the query's tokens of the cosine of the nearest of a text's tokens, (N,).

        `x` (N, T, H) are the texts' states, `mask` (N, T) their tokens.
        """
        tokens, weights = query.tokens, query.weights  # (B, Q, H), (B, Q)
        if owner is not None:
            tokens, weights = tokens[owner], weights[owner]
        near = F.normalize(x, dim=-1) @ tokens.transpose(-1, -2)  # (N, T, Q), cosines
        nearest = near.masked_fill(~mask[..., None], -1.0).amax(1)  # (N, Q)
        out: Tensor = (nearest * weights).sum(-1)
        return out

    def dual_score(
        self, query: QueryStates, ids: Tensor, mask: Tensor, owner: Tensor | None = None
    ) -> Tensor:
        """The dual encoder's logits (N,): the same network with the query's attention off."""
        scores = self.dual_scores(query, ids, mask)  # (N, B)
        return scores[:, 0] if owner is None else scores.gather(1, owner[:, None]).squeeze(1)

    def dual_scores(self, query: QueryStates, ids: Tensor, mask: Tensor) -> Tensor:
        """The dual encoder's logits (N, B) of every text against every query."""
        texts = F.normalize(self.encode_text(None, ids, mask), dim=-1)  # (N, H)
        out: Tensor = self.scale * texts @ F.normalize(query.pooled, dim=-1).T
        return out

    def encode_text(
        self,
        query: QueryStates | None,
        ids: Tensor,
        mask: Tensor,
        owner: Tensor | None = None,
    ) -> Tensor:
        """What the head reads of each text, (N, H); without a query: the bi-encoder's vectors."""
        return self.pool(*self.text_states(query, ids, mask, owner))

    def pool(self, x: Tensor, mask: Tensor) -> Tensor:
        """A text's one state: x (N, T, H), mask (N, T) -> (N, H)."""
        return x[:, 0] if self.config.start == "scratch" else mean_state(x, mask)

    def text_states(
        self,
        query: QueryStates | None,
        ids: Tensor,
        mask: Tensor,
        owner: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The last layer's states of texts, ids and mask (N, T) -> (N, T, H), and their mask.

        With sinks T is less there: the states are those of the texts without special tokens.
        """
        scratch, sinks = self.config.start == "scratch", self.config.sinks
        first: Tensor | int = 0
        if sinks:
            ids, mask = without_special(ids, mask)
            first = 1  # where a text's first word has always been
        if scratch and query is not None:
            lengths = query.mask.sum(1, keepdim=True)  # (B, 1)
            first = lengths if owner is None else lengths[owner]
        x = self.embed(ids, first, 1 if scratch else 0)  # (N, T, H)
        for depth, module in enumerate(self.layers):
            layer: Layer = module  # type: ignore[assignment]
            q, k = layer.split(layer.query(x)), layer.split(layer.key(x))
            v = layer.split(layer.value(x))  # all (N, A, T, D)
            read = None if depth < self.config.first_query_layer else query
            attend = self.attend_fused if x.is_cuda else self.attend
            x = layer.finish(x, attend(depth, q, k, v, mask, read, owner))
        return x, mask

    def attend(
        self,
        depth: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        query: QueryStates | None,
        owner: Tensor | None,
    ) -> Tensor:
        """What texts read of themselves, of the sinks and of a query, (N, A, T, D).

        `q`, `k` and `v` (N, A, T, D) are the texts' own, `mask` (N, T) their tokens.
        """
        root = q.shape[-1] ** 0.5
        seen = mask[:, None, None, :]  # (N, 1, 1, T)
        own = (q @ k.transpose(-1, -2) / root).masked_fill(~seen, float("-inf"))
        if self.config.sinks:
            rest = q @ self.sink_keys[depth].transpose(-1, -2) / root  # (N, A, T, 2)
            own = torch.cat([own, rest], -1)
            v = torch.cat([v, self.sink_values[depth].expand(len(v), -1, -1, -1)], 2)
        if query is None:
            context: Tensor = own.softmax(-1) @ v
            return context
        bias = self.query_bias[depth][:, None, None]  # (A, 1, 1)
        read = self._against(q, query.keys[depth].transpose(-1, -2), owner)
        shared = query.mask[:, None, None, :]  # (B, 1, 1, Q)
        shared = shared if owner is None else shared[owner]
        read = (read / root + bias).masked_fill(~shared, float("-inf"))
        weights = torch.cat([own, read], -1).softmax(-1)  # (N, A, T, T + 2 + Q)
        width = own.shape[-1]
        context = weights[..., :width] @ v
        return context + self._against(weights[..., width:], query.values[depth], owner)

    def attend_fused(
        self,
        depth: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        query: QueryStates | None,
        owner: Tensor | None,
    ) -> Tensor:
        """`attend` by one fused kernel, which never holds the weights: for GPUs.

        Biases and masks are an eighth more of every head's units, where all of `q` are 1, since
        the fast kernels (Dao 2023, arXiv 2307.08691) take no bias that is learned.
        """
        n, heads, _, size = q.shape
        parts = [(k, v, torch.where(mask, 0.0, _NEVER)[:, None].expand(-1, heads, -1))]
        if self.config.sinks:
            sinks = self.sink_keys[depth], self.sink_values[depth]
            both = [each.expand(n, -1, -1, -1) for each in sinks]
            parts.append((both[0], both[1], q.new_zeros(n, heads, SINKS)))
        if query is not None:
            whose = torch.zeros(n, dtype=torch.long, device=q.device) if owner is None else owner
            bias = self.query_bias[depth][:, None]  # (A, 1)
            bias = torch.where(query.mask[:, None], bias, _NEVER)[whose]  # (N, A, Q)
            parts.append((query.keys[depth][whose], query.values[depth][whose], bias))
        keys, values, biases = (
            torch.cat([p.to(q.dtype) for p in x], 2) for x in zip(*parts, strict=True)
        )
        ones = F.pad(q.new_ones(n, heads, q.shape[2], 1), (0, _WIDER - 1))
        context = F.scaled_dot_product_attention(
            torch.cat([q / size**0.5, ones], -1),
            torch.cat([keys, F.pad(biases[..., None], (0, _WIDER - 1))], -1),
            F.pad(values, (0, _WIDER)),
            scale=1.0,
        )
        return context[..., :size]

    @torch.no_grad()
    def add_sinks(self, ids: Tensor, mask: Tensor) -> BroadcastEncoder:
        """The same network with sinks: the mean keys and values of [CLS] and of [SEP].

        The mean is over the texts, ids and mask (N, T), as this network reads them without a
        query. What is left to learn is little: on dev lists the order of titles is nearly as
        good as before at once.
        """
        found = BroadcastEncoder(replace(self.config, sinks=True))
        rows, last = torch.arange(len(ids)), mask.sum(1) - 1

        def special(layers: list[Tensor]) -> Tensor:  # L of (N, A, T, D) -> (L, A, 2, D)
            ends = [(states[:, :, 0].mean(0), states[rows, :, last].mean(0)) for states in layers]
            return torch.stack([torch.stack(both, 1) for both in ends])

        read = self.encode_query(ids, mask)  # a text without a query is read as a query is
        sinks = {"sink_keys": special(read.keys), "sink_values": special(read.values)}
        found.load_state_dict(self.state_dict() | sinks)
        return found

    @staticmethod
    def _against(left: Tensor, right: Tensor, owner: Tensor | None) -> Tensor:
        """Multiply left (N, A, T, X) with the query's right (B, A, X, Y) -> (N, A, T, Y).

        For one query this is a single matmul of (A, N*T, X) with (A, X, Y): nothing of the
        query is copied per text.
        """
        if owner is not None:
            return left @ right[owner]
        n, heads, width, inner = left.shape
        flat = left.transpose(0, 1).reshape(heads, n * width, inner)
        return (flat @ right[0]).view(heads, n, width, -1).transpose(0, 1)


def without_special(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Texts without their first and last token, ids and mask (N, T) -> (N, T - 2).

    Of a text that has no other token the last one stays: there must be something to read.
    """
    lengths = mask.sum(1, keepdim=True)  # (N, 1)
    inner, first = (lengths - 2).clamp(min=1), (lengths - 1).clamp(min=0, max=1)
    span = torch.arange(int(inner.max()), device=ids.device)
    places = (span + first).clamp(max=ids.shape[1] - 1)
    return ids.gather(1, places), span < inner


def mean_state(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens: x (N, T, H), mask (N, T) -> (N, H)."""
    weights = mask[..., None].to(x.dtype)
    return (x * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def from_bert(
    state: Mapping[str, Tensor], bert: Mapping[str, Any], **changes: Any
) -> BroadcastEncoder:
    """A network that starts from a BERT encoder's weights.

    `state` and `bert` are the state dict and the configuration of a Hugging Face `BertModel`
    (any prefix before `embeddings.` is dropped). `changes` override fields of the
    configuration. Raises ValueError for another architecture.
    """
    if bert.get("model_type") != "bert" or bert.get("hidden_act", "gelu") != "gelu":
        raise ValueError(
            f"the backbone is a {bert.get('model_type')!r} model with activation "
            f"{bert.get('hidden_act')!r}; give one of the BERT family with gelu, "
            "for example sentence-transformers/all-MiniLM-L6-v2"
        )
    config = BroadcastConfig(
        **{
            "layers": int(bert["num_hidden_layers"]),
            "hidden": int(bert["hidden_size"]),
            "heads": int(bert["num_attention_heads"]),
            "intermediate": int(bert["intermediate_size"]),
            "vocabulary": int(bert["vocab_size"]),
            "positions": int(bert["max_position_embeddings"]),
            "token_types": int(bert["type_vocab_size"]),
            "norm_epsilon": float(bert["layer_norm_eps"]),
            **changes,
        }
    )
    model = BroadcastEncoder(config)
    ours = model.state_dict()
    for name, theirs in bert_names(config.layers).items():
        found = [key for key in state if key == theirs or key.endswith("." + theirs)]
        if not found:
            raise ValueError(f"the backbone has no weight named {theirs!r}: is it a BertModel?")
        ours[name] = state[found[0]].to(torch.float32)
    model.load_state_dict(ours)
    return model


def bert_names(layers: int) -> dict[str, str]:
    """Our parameter names -> those of Hugging Face's `BertModel`."""
    names = {
        "words.weight": "embeddings.word_embeddings.weight",
        "positions.weight": "embeddings.position_embeddings.weight",
        "types.weight": "embeddings.token_type_embeddings.weight",
        "embedding_norm.weight": "embeddings.LayerNorm.weight",
        "embedding_norm.bias": "embeddings.LayerNorm.bias",
    }
    parts = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "norm": "output.LayerNorm",
    }
    for depth in range(layers):
        for ours, theirs in parts.items():
            for kind in ("weight", "bias"):
                names[f"layers.{depth}.{ours}.{kind}"] = f"encoder.layer.{depth}.{theirs}.{kind}"
    return names
