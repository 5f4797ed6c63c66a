"""Captions with one word changed, as negatives of their own picture (beyond the paper).

Other pictures' captions differ in many words, so retrieval rarely asks whether two or three things are there, or which
of them is on the left. A foil, which differs in one word, asks nothing else; captions made so teach word order and
attributes to contrastive models, too (Yuksekgonul et al., When and why vision-language models behave like
bags-of-words, ICLR 2023).
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
    """Weights of foils [F] under which each word of a pair is the true one equally often.

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
    """Loss on a picture, a caption of it and a foil of that caption, summed over the pairs (beyond the paper).

    With s the logits of caption T and foil F, and z the gate logits of the word that was changed:
    -[log m(-s_F) + log m(s_T - s_F)], and gate_supervision times -[log m(z_T) + log m(-z_F) + log m(z_T - z_F)] where
    words have gates; m is the sigmoid.

    Args:
        regions, region_mask, words, word_mask: encoded pairs, [P, R, d], bool [P, R], [P, N, d], bool [P, N].
        foil_words, foil_mask: the captions' encoded foils, [P, M, d], bool [P, M].
        positions: int64 [P], of the changed word.
        weights: [P], of the pairs, as `balance` makes them.
        gate_supervision: weight of the gates' share.
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
