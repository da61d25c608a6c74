"""Pages read in two stages: all regions in one batch, then the page with what was read in them as its references."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from .decoding.transcript import Output
from .drafters.reference import REFERENCES, ReferenceDrafter
from .drafters.reference.text import as_symbols, occurrences
from .errors import MMSpecError, shown
from .generation import generate
from .inputs import load_image
from .layouts import Layout, Region, regions_of
from .settings.arguments import flags, whole_number
from .target import Target

WINDOW, TIMES = 10, 10
"""A region whose newest `WINDOW` tokens occur more than `TIMES` times goes in circles."""

STOPPED = "stopping_criteria"
"""The reason that an answer gives for its end where a criterion has ended it."""


class PageReading(NamedTuple):
    """A page that was read in two stages.

    Args:
        page: the answer about the whole page.
        regions: the answers about the regions; None where there is at most one region, which is not read alone.
        texts: the references of the page: what was read in each region.
    """

    page: Output
    regions: Output | None
    texts: list[str]

    @property
    def text(self) -> str:
        """The text of the page."""
        return self.page.text[0] or ""


@dataclass(frozen=True, kw_only=True)
class RegionReader:
    """Reads pages in the two stages of HSD (arXiv 2602.12957).

    First the pictures of all regions are the rows of one ragged batch, each drafted from what the layout parser has
    read in it; then the page is drafted from what the target has written about its regions. The page's text is that of
    plain decoding, whatever the parser and the first stage say, with every lossless verifier.

    Faithful: crops with a margin, one prompt for all regions, no first stage for a single region, and the guard: a
    region that goes in circles is stopped, and the parser's text taken in its place. Ours: rows of a batch, which
    attention to one packed sequence amounts to; one stage after the other, as the paper says (the released code lets
    both go on at once); the parser's text too where a stopping criterion of yours has ended a region; and a `canvas`
    for targets that read whole pages only.

    Args:
        target: the model that reads.
        drafter: what drafts from references, made for it.
        layout: layout parser, for pages whose regions are not given.
        prompt: what is asked about the page.
        region_prompt: what is asked about a region; None asks the same.
        margin: pixels that are cut out around a box.
        canvas: whether a crop is shown on a page of the whole page's size, in the colour of its last pixel, at the top.

    Raises:
        MMSpecError: for a drafter that has no references, a margin below 0, an empty prompt, or values of another
            kind.
    """

    target: Target
    drafter: ReferenceDrafter
    layout: Layout | None = None
    prompt: str
    region_prompt: str | None = None
    margin: int = 5
    canvas: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.drafter, ReferenceDrafter):
            raise MMSpecError(f"RegionReader: drafter={shown(self.drafter, 60)} must be a ReferenceDrafter")
        whole_number(self, lowest=0, margin=self.margin)
        flags(self, canvas=self.canvas)
        if self.layout is not None and not callable(self.layout):
            raise MMSpecError(f"RegionReader: layout={shown(self.layout, 60)} must be a function of a picture, or None")
        if not isinstance(self.region_prompt, str | None):
            raise MMSpecError(f"RegionReader: region_prompt={shown(self.region_prompt, 40)} must be a text, or None")
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise MMSpecError(
                f"RegionReader: prompt={shown(self.prompt, 40)} must be a text, which asks for the page's"
            )

    def read(self, page: Any, regions: Iterable[Region] | None = None, **options: Any) -> PageReading:
        """Read a page.

        Args:
            page: its picture: a PIL image, a path, ... (see `mmspec.media.load_image`).
            regions: its regions; None asks the layout parser.
            options: further arguments of `mmspec.generate`, for both stages.

        Raises:
            MMSpecError: for a page without regions and without a parser, for what is no region, and whatever
                `mmspec.generate` refuses.
        """
        picture = load_image(page)
        found = self._found(picture, regions)
        read, texts = None, [region.text for region in found]
        if len(found) > 1:
            read = self._read_all(picture, found, options)
            texts = [
                region.text if reason == STOPPED else text or ""
                for region, reason, text in zip(found, read.finish_reason, read.text, strict=True)
            ]
        out = generate(self.target, self.drafter, self.prompt, [picture], extras={REFERENCES: [texts]}, **options)
        return PageReading(out, read, texts)

    def crop(self, page: Image.Image, box: Sequence[float]) -> Image.Image:
        """Return the picture of a region."""
        left, top, right, bottom = box
        edge = self.margin
        inside = (
            max(int(left) - edge, 0),
            max(int(top) - edge, 0),
            min(int(right) + edge, page.width),
            min(int(bottom) + edge, page.height),
        )
        cut = page.crop(inside)
        if not self.canvas:
            return cut
        whole = Image.new(page.mode, page.size, page.getpixel((page.width - 1, page.height - 1)))
        whole.paste(cut, (inside[0], 0))
        return whole

    def _found(self, picture: Image.Image, regions: Iterable[Region] | None) -> list[Region]:
        """Return the regions of a page."""
        if regions is None:
            if self.layout is None:
                raise MMSpecError(
                    "RegionReader has no layout parser: give regions=[Region(text, box), ...] with the page, or "
                    "layout=, a function that finds them in a picture, such as mmspec.layouts.OcrLayout()"
                )
            regions = self.layout(picture)
        return regions_of(regions, picture)

    def _read_all(self, page: Image.Image, regions: Sequence[Region], options: dict[str, Any]) -> Output:
        """Return the target's answers about all regions, in one batch."""
        given = options.get("stopping_criteria")
        criteria = [] if given is None else [*given] if isinstance(given, Iterable) else [given]
        return generate(
            self.target,
            self.drafter,
            [self.region_prompt or self.prompt] * len(regions),
            [[self.crop(page, region.box)] for region in regions],
            extras={REFERENCES: [region.text for region in regions]},
            **{**options, "stopping_criteria": [*criteria, _stops]},
        )


def in_circles(tokens: Sequence[int]) -> bool:
    """Return True if the newest tokens of an answer have occurred so often that it goes in circles."""
    found = occurrences(as_symbols(tokens), as_symbols(tokens[-WINDOW:]))
    return len(tokens) > WINDOW and len([*islice(found, TIMES + 1)]) > TIMES


def _stops(input_ids: Tensor, scores: Any) -> bool:
    """Return True where an answer is to be stopped; the prompt before it does not go in circles."""
    return in_circles(input_ids[0].tolist())
