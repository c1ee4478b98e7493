"""Quality of features without labels."""

from hjepa_pl.evaluation.base import Features
from hjepa_pl.evaluation.collapse import effective_rank
from hjepa_pl.evaluation.geometry import dead_dimensions, isotropy, uniformity
from hjepa_pl.evaluation.spectra import alpha_req, rankme
from hjepa_pl.evaluation.tasks.base import Outcome, Task

IMAGES = 4096
"""Test images that are used: all of these metrics are bounded by, or grow with, their number."""


class Quality(Task):
    """Rank and geometry of the test images' features, without labels; compare networks, not datasets."""

    title = "RankMe"
    unit = ""

    def __call__(self, features: Features) -> Outcome:
        """Return RankMe, effective rank, alpha-ReQ, uniformity, isotropy and the percentage of dead dimensions."""
        x = features.test_x[:IMAGES].float().cpu()
        return Outcome({
            "rankme": rankme(x),
            "effective_rank": float(effective_rank(x)),
            "alpha_req": alpha_req(x),
            "uniformity": uniformity(x),
            "isotropy": isotropy(x),
            "dead_dimensions": dead_dimensions(x),
            "width": float(x.shape[1]),
        })  # fmt: skip
