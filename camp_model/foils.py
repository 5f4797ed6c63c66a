"""Captions with one word changed, as negatives of their own picture (beyond the paper).

Captions of other pictures differ in many words, so retrieval rarely tests whether two or three things are there, or
which of them is on the left. A foil differs in one word, so it tests only that. Such captions also teach word order and
attributes to contrastive models (Yuksekgonul et al., When and why vision-language models behave like bags-of-words,
ICLR 2023).
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn.functional import logsigmoid

from camp_model.matchers.prepared import PAIRS
from camp_model.model import CAMP


def balance(words: Sequence[str], foil_words: Sequence[str]) -> npt.NDArray[np.float32]:
    """Weights [F] of foils, such that in each pair of words either one is the true word equally often.

    Three things are rarer than two, so "three" is more often the foil than the truth, and a model could answer from the
    captions alone. A foil that changes a to b has the weight min(n_ab, n_ba) / n_ab, where n_ab counts such foils.
    """
    pairs = list(zip(words, foil_words, strict=True))
    count = Counter(pairs)
    return np.array([min(count[a, b], count[b, a]) / count[a, b] for a, b in pairs], dtype=np.float32)


def foil_bce(
    model: CAMP,
    regions: Tensor,
    region_mask: Tensor,
    words: Tensor,
    word_mask: Tensor,
    foil_words: Tensor,
    foil_mask: Tensor,
    *,
    positions: Tensor,
    weights: Tensor,
    gate_supervision: float = 0.0,
) -> Tensor:
    """Loss on pictures, their captions T and foils F of these captions, summed over the pairs (beyond the paper).

    The loss of a pair is -[log m(-s_F) + log m(s_T - s_F)]; if words have gates, gate_supervision times
    -[log m(z_T) + log m(-z_F) + log m(z_T - z_F)] is added. m is the sigmoid, s the logit of a caption, and z the gate
    logit of the changed word.

    Args:
        regions, region_mask, words, word_mask: encoded pairs, [P, R, d], bool [P, R], [P, N, d], bool [P, N].
        foil_words, foil_mask: the captions' encoded foils, [P, M, d], bool [P, M].
        positions: int64 [P], position of the changed word in both captions.
        weights: [P], weights of the pairs, from `balance`.
        gate_supervision: weight of the gates' term.

    Returns:
        A scalar in float32 or wider.
    """
    images = model.prepare_regions(regions, region_mask)
    true = model.match(images, model.prepare_words(words, word_mask), PAIRS)
    false = model.match(images, model.prepare_words(foil_words, foil_mask), PAIRS)
    cost = -logsigmoid(-false.logits) - logsigmoid(true.logits - false.logits)
    if gate_supervision and true.words is not None and false.words is not None:
        of_true, of_false = true.words.gate_logits, false.words.gate_logits
        if of_true is not None and of_false is not None:
            open_, closed = (values.gather(1, positions[:, None])[:, 0] for values in (of_true, of_false))
            gates = logsigmoid(open_) + logsigmoid(-closed) + logsigmoid(open_ - closed)
            cost = cost - gate_supervision * gates
    total: Tensor = (weights * cost).sum()
    return total
