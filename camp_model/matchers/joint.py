"""A joint embedding, a baseline without messages: the cosine of one vector per image and one per caption.

With hardest negatives and a ranking loss, this is VSE++ (Faghri et al., BMVC 2018) on regions and pooled words.
"""

from torch import Tensor

from camp_model.config import CampConfig
from camp_model.matchers.base import Matched, Matcher
from camp_model.matchers.matching import CosineMatching
from camp_model.matchers.pooling import Pooling
from camp_model.matchers.prepared import PAIRS, Layout, Prepared


class JointMatcher(Matcher):
    """The cosine of the pooled sides; reads `pooling` and `pooling_heads`."""

    has_vectors = True

    def __init__(self, config: CampConfig) -> None:
        super().__init__(config)
        self.region_pooling = Pooling(config)
        self.word_pooling = Pooling(config)
        self.matching = CosineMatching()

    @property
    def cosine(self) -> CosineMatching:
        """As `Matcher.cosine`."""
        return self.matching

    def prepare_regions(self, regions: Tensor, mask: Tensor) -> Prepared:
        """As `Matcher.prepare_regions`; with the images' vectors."""
        pooled, weights = self.region_pooling(regions, mask)
        return Prepared(regions, mask, pooled=pooled, pooling=weights)

    def prepare_words(self, words: Tensor, mask: Tensor) -> Prepared:
        """As `Matcher.prepare_words`; with the captions' vectors."""
        pooled, weights = self.word_pooling(words, mask)
        return Prepared(words, mask, pooled=pooled, pooling=weights)

    def match(self, images: Prepared, captions: Prepared, layout: Layout) -> Matched:
        """As `Matcher.match`."""
        assert images.pooled is not None and captions.pooled is not None
        assert images.pooling is not None and captions.pooling is not None
        score = self.matching if layout is PAIRS else self.matching.all_pairs
        logits, similarity = score(images.pooled, captions.pooled)  # [...]
        return Matched(
            logits,
            similarity,
            region_pooling=layout.regions(images.pooling),
            word_pooling=layout.words(captions.pooling),
        )
