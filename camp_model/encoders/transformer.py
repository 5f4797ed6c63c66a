"""A pretrained transformer as the text encoder.

Words stay the unit: a word's state is the mean of its pieces' last hidden states, and a linear layer takes it to d.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from camp_model.config import CampConfig
from camp_model.encoders.base import SERVING_BYTES, TextEncoder, length_mask
from camp_model.encoders.pretrained import (
    LONGEST_WORD,
    PROBES,
    PieceTokenizer,
    architecture_of,
    load_text_network,
    longest_input,
    network_of,
    pieces_of_words,
    sha256_of_weights,
    weights_location,
)
from camp_model.encoders.word_states import WordStates
from camp_model.out_of_vocabulary import FIRST_OOV_ID, MAX_OOV_WORDS, OOV_WORDS
from camp_model.packages import PREFIX
from camp_model.tensors import to_device
from camp_model.vocabulary import END, SPECIALS, START, UNK, Vocabulary

AT_ONCE = 64
"""Captions that the network reads at once, of similar length, so that short ones need little padding."""


class TransformerEncoder(TextEncoder):
    """A network of Hugging Face (`config.transformer`) over the pieces of words, at most K of each; frozen or trained.

    A frozen network of an installed package is not among the module's weights; a checkpoint stores its name and hash.
    Any other network is the submodule `transformer`, and a checkpoint stores its weights. A frozen network is always in
    evaluation mode, computes in float32, and reads each distinct caption once.

    Args:
        config: the switches.
        network: used instead of the one that `config.transformer` names.

    Raises:
        ValueError: the network cannot be loaded.
    """

    def __init__(self, config: CampConfig, network: nn.Module | None = None) -> None:
        super().__init__(config)
        network = load_text_network(config.transformer) if network is None else network
        self._packaged: tuple[nn.Module, ...] = ()  # in a tuple a module is no submodule
        if config.transformer_frozen and config.transformer.startswith(PREFIX):
            self._packaged = (network,)
        else:
            self.transformer = network
        network.requires_grad_(not config.transformer_frozen)
        self.linear = nn.Linear(network.config.hidden_size, config.dim)  # type: ignore[union-attr, arg-type]
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        network.to(self.linear.weight.device)
        self._pieces: list[list[int]] = []
        self.register_buffer("piece_table", torch.zeros(0, 0, dtype=torch.int64), persistent=False)
        self.register_buffer("piece_counts", torch.zeros(0, dtype=torch.int64), persistent=False)
        self._states = WordStates()
        # A name of the hub is not asked for its tokenizer while a sentence waits.
        self._has_tokenizer = config.transformer.startswith(PREFIX) or Path(config.transformer).is_dir()
        self._tokenizer: PieceTokenizer | None = None
        self._probes: list[list[int]] = []
        """Pieces of `PROBES`; none in a checkpoint from before them."""
        self._oov_pieces: dict[int, list[int]] = {}
        """Id of a word outside the vocabulary (OOV) -> its pieces."""

    @property
    def network(self) -> nn.Module:
        """The transformer."""
        return self._packaged[0] if self._packaged else self.transformer

    @property
    def frozen(self) -> bool:
        """Whether none of the network's weights is trained."""
        return not any(weight.requires_grad for weight in self.network.parameters())

    def read_vocabulary(self, vocabulary: Vocabulary) -> None:
        """As `TextEncoder.read_vocabulary`: the pieces of every word."""
        pieces = pieces_of_words(self.config.transformer, [*vocabulary.words, *PROBES])
        self._set_pieces(pieces[: len(vocabulary)])
        self._probes = pieces[len(vocabulary) :]

    def _set_pieces(self, pieces: list[list[int]]) -> None:
        where = f"model.transformer: {self.config.transformer:.200}: pieces of its tokenizer"
        known = int(self.network.config.vocab_size)  # type: ignore[union-attr, arg-type]
        if len(pieces) != self.config.vocab_size or not all(len(word) <= LONGEST_WORD for word in pieces[4:]):
            raise ValueError(f"{where}: not of {self.config.vocab_size} words with {LONGEST_WORD} or fewer each")
        if not all(type(piece) is int and 0 <= piece < known for word in pieces for piece in word):
            raise ValueError(f"{where}: not all between 0 and {known - 1}, as the network's are")
        device = self.linear.weight.device
        self._pieces = pieces
        self.piece_counts = torch.tensor([len(word) for word in pieces], device=device)
        rows = [torch.tensor(word, dtype=torch.int64, device=device) for word in pieces]
        self.piece_table = pad_sequence(rows, batch_first=True)  # [vocab_size, K]

    @property
    def reads_spelling(self) -> bool:
        """As `TextEncoder.reads_spelling`."""
        return self._has_tokenizer

    def oov_ids(self, words: Sequence[str]) -> list[int]:
        """As `TextEncoder.oov_ids`."""
        ids = OOV_WORDS.ids(words) if self._has_tokenizer else [UNK] * len(words)
        return [UNK if unread else number for number, unread in zip(ids, self.unread(ids), strict=True)]

    def unread(self, ids: Sequence[int]) -> list[bool]:
        """As `TextEncoder.unread`: a word cannot be read if all its pieces are the unknown one."""
        unknown = set(self._pieces[UNK])
        return [number >= UNK and set(its) <= unknown for number, its in zip(ids, self._pieces_of(ids), strict=True)]

    def _pieces_of(self, ids: Sequence[int]) -> list[list[int]]:
        """The pieces of words by their ids; the unknown piece for OOV words where no tokenizer can be asked."""
        known = self._oov_pieces if len(self._oov_pieces) < MAX_OOV_WORDS else {}
        new = [number for number in dict.fromkeys(ids) if number >= FIRST_OOV_ID and number not in known]
        known |= zip(new, self._tokenize(OOV_WORDS.words(new)), strict=True)
        self._oov_pieces = known
        return [known[number] if number >= FIRST_OOV_ID else self._pieces[number] for number in ids]

    def _tokenize(self, words: Sequence[str]) -> list[list[int]]:
        if words and self._has_tokenizer and self._tokenizer is None:
            try:
                self._tokenizer = self._load_tokenizer()
            except ValueError:  # gone since the training
                self._has_tokenizer = False
        if not words or self._tokenizer is None:
            return [self._pieces[UNK]] * len(words)
        largest = int(self.network.config.vocab_size) - 1  # type: ignore[union-attr, arg-type]
        tokenized = self._tokenizer.tokenize_or_unknown(words)
        return [pieces if max(pieces) <= largest else self._pieces[UNK] for pieces in tokenized]

    def _load_tokenizer(self) -> PieceTokenizer:
        """Load the tokenizer that split the words of the vocabulary into pieces.

        Raises:
            ValueError: there is none, or another.
        """
        tokenizer = PieceTokenizer(self.config.transformer)
        probes = tokenizer.tokenize(PROBES) if self._probes else []
        if tokenizer.specials != self._pieces[: len(SPECIALS)] or probes != self._probes:
            raise ValueError(f"model.transformer: {self.config.transformer:.200}: has another tokenizer")
        return tokenizer

    def facts(self) -> dict[str, Any]:
        """As `TextEncoder.facts`."""
        pieces = {"pieces": self._pieces, "probes": self._probes}
        if self._packaged:
            return {"sha256": sha256_of_weights(weights_location(self.config.transformer)), **pieces}
        return {"architecture": architecture_of(self.network), **pieces}

    @classmethod
    def from_facts(cls, config: CampConfig, facts: dict[str, Any]) -> Self:
        """As `TextEncoder.from_facts`."""
        if "architecture" in facts:
            encoder = cls(config, network_of(facts["architecture"]))
        else:
            own = sha256_of_weights(weights_location(config.transformer))
            if own != facts.get("sha256"):
                raise ValueError(
                    f"model.transformer: {config.transformer}: has sha256 {own}, but the model was trained on "
                    f"{facts.get('sha256')!r:.80}; expected the package in the version that it was trained with"
                )
            encoder = cls(config)
        encoder._set_pieces(facts.get("pieces", []))
        encoder._probes = facts.get("probes", [])
        return encoder

    def encode(self, tokens: Tensor, lengths: Tensor, dropout: nn.Module) -> Tensor:
        """As `TextEncoder.encode`; dropout is applied to the words' states."""
        # Where only train.freeze holds the network still, its checkpoint does not say so: measured as that will be.
        cached = self.frozen and (self.training or self.config.transformer_frozen)
        states = self._frozen_states(tokens, lengths) if cached else self.word_states(tokens, lengths)
        encoded: Tensor = self.linear(dropout(states.to(self.linear.weight.dtype)))
        return encoded

    def limit_cache(self, size: int = SERVING_BYTES) -> None:
        """As `TextEncoder.limit_cache`."""
        self._states.max_bytes = size

    def cache_states(self, tokens: Tensor, lengths: Tensor) -> bool:
        """As `TextEncoder.cache_states`."""
        if self.frozen and not self._states.is_full:
            self._frozen_states(tokens, lengths)
        return self.frozen and not self._states.is_full

    def _frozen_states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        # States that are kept may be of use to a training step, which tensors of inference mode are not.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            return self._states.of(tokens, lengths, self.word_states)

    def word_states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The mean last hidden state of each word's pieces.

        Words whose pieces no longer fit into the network's input have zeros.

        Args:
            tokens: int64 [C, N] word ids.
            lengths: int64 [C].

        Returns:
            [C, N, hidden width], zero at padding.

        Raises:
            ValueError: `read_vocabulary` has not been called.
        """
        if not len(self.piece_table):
            raise ValueError("text encoder: knows no words yet; call read_vocabulary first")
        words, counts, _, table = self._framed(tokens, lengths)  # [C, N + 2]
        order = counts.sum(1).argsort(stable=True)
        states = [self._means(table, words[rows], counts[rows]) for rows in torch.split(order, AT_ONCE)]
        return torch.cat(states)[order.argsort()][:, 1:-1]

    def _means(self, table: Tensor, words: Tensor, counts: Tensor) -> Tensor:
        """The mean state of the first `counts` pieces of each word: int64 [C, N] each -> [C, N, hidden width]."""
        starts = counts.cumsum(1) - counts  # [C, N]
        pieces = torch.arange(int(counts.max()), device=words.device)  # [K]
        real = pieces < counts[..., None]  # [C, N, K]
        chosen = real.nonzero(as_tuple=True)  # a mask as an index waits for a GPU each time that it is used
        rows, at = chosen[0], (starts[..., None] + pieces)[chosen]
        totals = counts.sum(1)
        ids = words.new_zeros(len(words), int(totals.max()))
        ids[rows, at] = table[words][..., : len(pieces)][chosen]
        mask = length_mask(totals, ids.shape[1])
        hidden = self.network(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # [C, L, width]
        gathered = hidden.new_zeros(*real.shape, hidden.shape[-1])
        gathered[chosen] = hidden[rows, at]
        means: Tensor = gathered.sum(2) / counts.clamp(min=1)[..., None]
        return means

    def _table(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The table of pieces: the vocabulary's, with a further row for each word outside it among `tokens` [C, N].

        Returns:
            The row of each word [C, N], the table [W, K], and the number of pieces in each row [W], all int64.
        """
        is_oov = tokens >= FIRST_OOV_ID
        if not is_oov.any():
            return tokens, self.piece_table, self.piece_counts
        ids, index = torch.unique(tokens[is_oov], return_inverse=True)
        pieces = [torch.tensor(word, device=tokens.device) for word in self._pieces_of(ids.tolist())]
        more = pad_sequence(pieces, batch_first=True)
        width = max(more.shape[1], self.piece_table.shape[1])
        table = torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in (self.piece_table, more)])
        sizes = torch.cat([self.piece_counts, self.piece_counts.new_tensor([len(word) for word in pieces])])
        return tokens.masked_scatter(is_oov, len(self.piece_table) + index), table, sizes

    def words_read(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """As `TextEncoder.words_read`."""
        # No word fits behind one that does not; one without pieces needs no place.
        return self._framed(tokens, lengths)[2][:, 1:].sum(1).minimum(to_device(lengths, tokens.device))

    def _framed(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Put each caption between one <start> and one <end>, and count the pieces of each word that the network reads.

        Returns:
            Rows (<start>, words, <end>) and counts, int64 [C, N + 2]; what but <end> fits, bool; the table of `_table`.
        """
        lengths = to_device(lengths, tokens.device)
        real = length_mask(lengths, tokens.shape[1])
        tokens, table, sizes = self._table(tokens.where(real, 0))
        words = nn.functional.pad(tokens, (1, 1))
        words[:, 0] = START
        counts = sizes[words]
        counts[:, 1:-1] *= real
        counts[:, 0] *= tokens[:, 0] != START
        # <end> stands behind the longest caption; padding before it has no pieces.
        words[:, -1] = END
        ending = self.piece_counts[END]
        counts[:, -1] = ending * (tokens.gather(1, (lengths - 1)[:, None])[:, 0] != END)
        fits = counts[:, :-1].cumsum(1) <= longest_input(self.network) - ending
        counts[:, :-1] *= fits
        return words, counts, fits, table

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but for a frozen network, which drops nothing."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for network in self._packaged:
            network._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        if not self._packaged:  # else its network's weights are not among them
            self._states.clear()
        super()._load_from_state_dict(*arguments, **keywords)
