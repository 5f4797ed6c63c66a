"""Encoders, which map region features and word ids into the joint space (paper section 3.1).

Neither output is L2-normalised: gates are inner products and open or close only on features of free length.
"""

from camp_model.encoders.base import TextEncoder, length_mask
from camp_model.encoders.regions import LOCATION_DIM, RegionEncoder, region_locations

__all__ = ["LOCATION_DIM", "RegionEncoder", "TextEncoder", "length_mask", "region_locations"]
