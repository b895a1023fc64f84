"""Keys and values of the running requests -> attention for prompts and for single steps. Knows no requests.

A grid in each layer: one row a request, the used rows always first, so that a step attends to one view of all of them
without copying. The grid grows with what is written; what may be written is bounded when a request is admitted. No
paging, no sharing of prefixes.

Shapes: T tokens, B used rows, K key/value heads, G query heads per K, H = K*G, S positions, E head width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from puna.model.attend import attend_behind_prefix, packed_attend
from puna.model.config import LlamaConfig
from puna.model.llama import Attend

BLOCK = 64


def round_up(length: int) -> int:
    """Round to whole blocks: attention always runs over a multiple of BLOCK positions."""
    return -(-length // BLOCK) * BLOCK


class KVCache:
    """Invariants: used + free rows = `max_rows`; used rows x longest reservation <= `max_tokens`."""

    def __init__(
        self, config: LlamaConfig, *, max_rows: int, max_tokens: int, dtype: torch.dtype, device: torch.device
    ):
        self.max_rows, self.max_tokens = max_rows, max_tokens
        self._reserved: list[int] = []
        self._written: list[int] = []
        empty_BKSE = torch.zeros(0, config.num_kv_heads, 0, config.head_dim, dtype=dtype, device=device)
        self._keys = [empty_BKSE] * config.num_layers
        self._values = [empty_BKSE] * config.num_layers

    @property
    def num_used(self) -> int:
        return len(self._reserved)

    @property
    def num_free(self) -> int:
        return self.max_rows - self.num_used

    @property
    def num_allocated(self) -> int:
        """Positions for which memory is held, used or not."""
        return self._keys[0].shape[0] * self._keys[0].shape[2]

    def fits_alone(self, length: int) -> bool:
        return round_up(length) <= self.max_tokens

    def can_admit(self, length: int) -> bool:
        longest = max([length, *self._reserved])
        return self.num_free > 0 and (self.num_used + 1) * round_up(longest) <= self.max_tokens

    def admit(self, length: int) -> None:
        """Reserve `length` positions in the first free row, which is row `num_used`."""
        assert self.can_admit(length)
        self._reserved.append(length)
        self._written.append(0)

    @torch.inference_mode()
    def release(self, row: int, *, clear: bool = False) -> None:
        """Free a row and move the last used row into its place.

        NOTE: a masked position still enters the weighted sum as 0 * value, so a row in which NaN may stand has to be
        cleared, or it would poison the next request there.
        """
        last, written = self.num_used - 1, self._written[-1]
        for grid_BKSE in (*self._keys, *self._values):
            if clear:
                grid_BKSE[row : row + 1].zero_()
            if row != last and written:
                grid_BKSE[row, :, :written] = grid_BKSE[last, :, :written]
        for lengths in (self._reserved, self._written):
            lengths[row] = lengths[last]
            lengths.pop()

    def prompt_attend(self, rows: Sequence[int], lengths: Sequence[int]) -> Attend:
        """Return attention for whole prompts, packed on T, that also writes their keys and values into `rows`."""
        sizes = list(lengths)
        self._make_room(rows, sizes)
        attend_packed = packed_attend(sizes, joins_short=False)

        def attend(layer: int, q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor) -> torch.Tensor:
            for row, k, v in zip(rows, k_TKE.split(sizes), v_TKE.split(sizes), strict=True):
                self._keys[layer][row, :, : k.shape[0]] = k.transpose(0, 1)
                self._values[layer][row, :, : v.shape[0]] = v.transpose(0, 1)
            return attend_packed(layer, q_THE, k_TKE, v_TKE)

        return attend

    def piece_attend(self, row: int, start: int, length: int) -> Attend:
        """Return attention for `length` tokens of one prompt from position `start` on, behind what `row` holds."""
        end = start + length
        self._make_room([row], [end])

        def attend(layer: int, q_THE: torch.Tensor, k_TKE: torch.Tensor, v_TKE: torch.Tensor) -> torch.Tensor:
            k_KSE, v_KSE = self._keys[layer][row, :, :end], self._values[layer][row, :, :end]
            k_KSE[:, start:] = k_TKE.transpose(0, 1)
            v_KSE[:, start:] = v_TKE.transpose(0, 1)
            return attend_behind_prefix(q_THE, k_KSE, v_KSE)

        return attend

    def step_attend(self, first_row: int, positions: Sequence[int]) -> Attend:
        """Return attention for one token each of the rows from `first_row` on, that writes them at `positions`."""
        rows = range(first_row, first_row + len(positions))
        self._make_room(rows, [position + 1 for position in positions])
        used, device = round_up(max(positions) + 1), self._keys[0].device
        view = (slice(rows.start, rows.stop), slice(None), slice(used))
        rows_B = torch.tensor(rows, device=device)
        positions_B = torch.tensor(positions, device=device)
        is_hidden_BS = torch.arange(used, device=device) > positions_B[:, None]
        mask_BS = torch.zeros(is_hidden_BS.shape, dtype=self._keys[0].dtype, device=device)
        mask_B11S = mask_BS.masked_fill(is_hidden_BS, float("-inf"))[:, None, None]

        def attend(layer: int, q_BHE: torch.Tensor, k_BKE: torch.Tensor, v_BKE: torch.Tensor) -> torch.Tensor:
            keys_BKSE, values_BKSE = self._keys[layer], self._values[layer]
            keys_BKSE[rows_B, :, positions_B] = k_BKE
            values_BKSE[rows_B, :, positions_B] = v_BKE
            # The G query heads of a key head stand where the query positions would: nothing is repeated.
            q_BKGE = q_BHE.unflatten(1, (k_BKE.shape[1], -1))
            out_BKGE = F.scaled_dot_product_attention(q_BKGE, keys_BKSE[view], values_BKSE[view], attn_mask=mask_B11S)
            return out_BKGE.flatten(1, 2)

        return attend

    def _make_room(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Grow the grid until `rows` hold these lengths, doubling where the bound allows it."""
        for row, length in zip(rows, lengths, strict=True):
            assert length <= self._reserved[row]
            self._written[row] = length
        old_rows, _, old_positions, _ = self._keys[0].shape
        needed = round_up(max(self._written))
        if self.num_used <= old_rows and needed <= old_positions:
            return
        new_rows, new_positions = old_rows, old_positions
        if self.num_used > old_rows:
            new_rows = min(self.max_rows, max(self.num_used, 2 * old_rows))
        if needed > old_positions:
            new_positions = min(round_up(max(self._reserved)), max(needed, 2 * old_positions))
        if new_rows * new_positions > self.max_tokens:
            new_rows, new_positions = self.num_used, needed
        assert new_rows * new_positions <= self.max_tokens
        for grids in (self._keys, self._values):
            for layer, old_BKSE in enumerate(grids):
                grids[layer] = _regrow(old_BKSE, new_rows, new_positions)


def _regrow(old_BKSE: torch.Tensor, rows: int, positions: int) -> torch.Tensor:
    # NOTE: zeros, not empty: what stands in unwritten positions is multiplied by 0, and 0 * NaN is NaN.
    new_BKSE = old_BKSE.new_zeros(rows, old_BKSE.shape[1], positions, old_BKSE.shape[3])
    rows, positions = min(rows, old_BKSE.shape[0]), min(positions, old_BKSE.shape[2])
    new_BKSE[:rows, :, :positions] = old_BKSE[:rows, :, :positions]
    return new_BKSE
