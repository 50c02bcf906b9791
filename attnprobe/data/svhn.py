"""Street View House Numbers, apart from the other sets because torchvision takes seconds to import."""

from typing import Any

from torchvision.datasets import SVHN


class NamedSVHN(SVHN):
    """The set, which timm does not know, with the attributes that torchvision's others have."""

    classes = tuple(map(str, range(10)))

    @property
    def targets(self) -> Any:
        """[image], 0 to 9."""
        return self.labels
