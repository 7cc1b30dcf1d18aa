"""The two maps of a Polyp-PVT with the weights and input of `fill.py`, upsampled as the released losses see them."""

import torch

from segdistill.models.polyp_pvt import enlarged
from segdistill.models.polyp_pvt_official import polyp_pvt_state
from segdistill.models.students import build_student

from .fill import fill, make_input


def polyp_maps(keys, backbone):
    """Logits (2, 2, 352, 352) of P1 and of P2; keys: official name -> shape."""
    network = build_student("polyp_pvt", classes=2, backbone=backbone).eval()
    weights = {key: torch.from_numpy(fill(key, tuple(shape))) for key, shape in keys.items()}
    network.load_state_dict(polyp_pvt_state(weights), strict=False)
    with torch.no_grad():
        pair = network.maps(network.backbone(torch.from_numpy(make_input(51, (2, 3, 352, 352)))))
    return [enlarged(m) for m in pair]
