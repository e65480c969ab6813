"""Report -> the 14 CheXpert observations.

A labeler is any function from reports without tags to one `Labels` each, in order:

* `reward_sdk.labelers.rules.label_reports`, regular expressions, needs no weights;
* `reward_sdk.labelers.chexbert.load_chexbert(...)`, the labeler of the literature.
"""

from collections.abc import Callable, Sequence

from reward_sdk.observations import Labels

Labeler = Callable[[Sequence[str]], Sequence[Labels]]
