from ..training.feeds import (
    epoch_order as epoch_order,
)
from ..training.scores import (
    check_abstentions as check_abstentions,
)
from ..training.scores import (
    checked_scores as checked_scores,
)
from ..training.scores import (
    score_groups as score_groups,
)
from .cached import (
    cached_logprobs as cached_logprobs,
)
from .online import (
    HeldAlgorithm as HeldAlgorithm,
)
from .online import (
    OnlineAlgorithm as OnlineAlgorithm,
)
from .options import (
    ClippedOptions as ClippedOptions,
)
from .options import (
    FDivergence as FDivergence,
)
from .options import (
    HeldOptions as HeldOptions,
)
from .options import (
    KLControlOptions as KLControlOptions,
)
from .options import (
    KLOptions as KLOptions,
)
from .options import (
    OfflineOptions as OfflineOptions,
)
from .options import (
    OnePassOptions as OnePassOptions,
)
from .options import (
    OnlineOptions as OnlineOptions,
)
from .options import (
    PolicyGradientOptions as PolicyGradientOptions,
)
from .options import (
    PolicyLossOptions as PolicyLossOptions,
)
from .options import (
    PreferenceOptions as PreferenceOptions,
)
from .options import (
    RatioOptions as RatioOptions,
)
from .options import (
    RewardOptions as RewardOptions,
)
from .passes import (
    each_piece as each_piece,
)
from .passes import (
    policy_logprobs as policy_logprobs,
)
from .passes import (
    require_values as require_values,
)
from .passes import (
    scorer_outputs as scorer_outputs,
)
from .policy_gradient import (
    ClippedPolicyGradient as ClippedPolicyGradient,
)
from .policy_gradient import (
    PolicyGradient as PolicyGradient,
)
from .policy_gradient import (
    known as known,
)
from .rankings import (
    OfflineLoss as OfflineLoss,
)
from .rankings import (
    PreferenceLoss as PreferenceLoss,
)
from .rankings import (
    RankingLoss as RankingLoss,
)
from .rankings import (
    ResponseLogprobs as ResponseLogprobs,
)
