from ..records import (
    FIELD as FIELD,
)
from .agreement import (
    Z95 as Z95,
)
from .agreement import (
    Share as Share,
)
from .agreement import (
    agreement_with_people as agreement_with_people,
)
from .agreement import (
    most_frequent as most_frequent,
)
from .agreement import (
    panel_verdict as panel_verdict,
)
from .agreement import (
    random_person as random_person,
)
from .agreement import (
    ranked_by_ai as ranked_by_ai,
)
from .annotations import (
    FIRST as FIRST,
)
from .annotations import (
    RANKS_OF_VERDICT as RANKS_OF_VERDICT,
)
from .annotations import (
    SECOND as SECOND,
)
from .annotations import (
    TIE as TIE,
)
from .annotations import (
    Annotation as Annotation,
)
from .annotations import (
    Kind as Kind,
)
from .annotations import (
    annotations_of as annotations_of,
)
from .annotations import (
    stored_annotations as stored_annotations,
)
from .annotations import (
    with_annotations as with_annotations,
)
from .rank_fit import (
    MAX_STEPS as MAX_STEPS,
)
from .rank_fit import (
    SAME_STRENGTH as SAME_STRENGTH,
)
from .rank_fit import (
    SHARE_OF_FIRST as SHARE_OF_FIRST,
)
from .rank_fit import (
    TOLERANCE as TOLERANCE,
)
from .rank_fit import (
    bradley_terry as bradley_terry,
)
from .rank_fit import (
    compared_together as compared_together,
)
from .rank_fit import (
    intransitive_cycles as intransitive_cycles,
)
from .rank_fit import (
    ranked_by_scores as ranked_by_scores,
)
from .rank_fit import (
    ranks_of as ranks_of,
)
from .rank_fit import (
    voted_ranks as voted_ranks,
)
from .rank_fit import (
    wins_of as wins_of,
)
from .similar import (
    NEAR as NEAR,
)
from .similar import (
    RUN as RUN,
)
from .similar import (
    distinct as distinct,
)
from .similar import (
    likeness as likeness,
)
from .similar import (
    normalized as normalized,
)
from .similar import (
    runs as runs,
)
