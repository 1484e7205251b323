"""One-to-one matching for images with few objects, on the device: exact, without the Hungarian algorithm on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def few_to_one(cost: Tensor) -> Tensor:
    """Matches each object with a prediction of its own at the lowest total cost.

    Each object of an optimal matching has one of its M cheapest predictions, since the M - 1 others can take no more than
    M - 1 of these; so M^M combinations are tried, all at once.

    Args:
        cost: (B, N, M) of prediction and object, infinite where there is no object; N >= M, and M is small (at most 4).

    Returns:
        owner (B, N): the object that each prediction is matched with, -1 for none.
    """
    count = cost.shape[2]
    cheapest = cost.nan_to_num(posinf=0.0).mT.topk(count, largest=False)  # objects that are not there cost nothing
    chosen = torch.cartesian_prod(*[torch.arange(count, device=cost.device)] * count).view(-1, count)  # (M^M, M)
    objects = torch.arange(count, device=cost.device)
    total = cheapest.values[:, objects, chosen].sum(-1)  # (B, M^M)
    queries = cheapest.indices[:, objects, chosen]  # (B, M^M, M)
    there = ~cost[:, 0].isposinf()  # (B, M)
    same = (queries[..., :, None] == queries[..., None, :]) & ~torch.eye(count, dtype=torch.bool, device=cost.device)
    clash = (same & (there[:, :, None] & there[:, None])[:, None]).any((-1, -2))
    best = total.masked_fill(clash, torch.inf).argmin(1)
    taken = queries.gather(1, best[:, None, None].expand(-1, 1, count))[:, 0]  # (B, M)
    owner = torch.full((len(cost), cost.shape[1] + 1), -1, device=cost.device)
    owner.scatter_(1, torch.where(there, taken, cost.shape[1]), objects.expand(len(cost), -1))  # no object: one too far
    return owner[:, :-1]
