"""What a user says of arrays that another program saved."""

from dataclasses import dataclass

from attnprobe.core.sites import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """Axes, positions and site of saved arrays."""

    axes: str = ""
    """axes of each array, of image, layer, head, query, key, or their first letters, such as IHQK; missing axes count
    as one. If not given: 5 axes are all of these in this order, 4 axes one layer each."""
    grid: str = ""
    """rows and columns of patches, such as 14x14; no positions are claimed if not given."""
    patch: int = 16
    """height and width of a patch in pixels, with --grid."""
    prefix: str = "cls"
    """names of the tokens before the patches, separated by commas, with --grid; none for no such token."""
    site: Site | None = None
    """weights (after the softmax), effective or scores; by the sums of rows if not given."""
    name: str = ""
    """name of the model; the file's if not given."""
