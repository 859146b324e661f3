from .advantages import (
    RunningMoments as RunningMoments,
)
from .advantages import (
    explained_variance as explained_variance,
)
from .advantages import (
    gae as gae,
)
from .advantages import (
    group_mean as group_mean,
)
from .advantages import (
    group_std as group_std,
)
from .advantages import (
    leave_one_out_mean as leave_one_out_mean,
)
from .advantages import (
    moments as moments,
)
from .advantages import (
    rewards_to_go as rewards_to_go,
)
from .advantages import (
    whiten as whiten,
)
from .choices import (
    Aggregation as Aggregation,
)
from .choices import (
    KLControl as KLControl,
)
from .choices import (
    KLEstimator as KLEstimator,
)
from .choices import (
    KLPlace as KLPlace,
)
from .choices import (
    Mismatch as Mismatch,
)
from .choices import (
    RatioLevel as RatioLevel,
)
from .choices import (
    Surrogate as Surrogate,
)
from .digests import (
    digest_of_tensors as digest_of_tensors,
)
from .distributed import (
    are_split as are_split,
)
from .distributed import (
    barrier as barrier,
)
from .distributed import (
    from_all_processes as from_all_processes,
)
from .distributed import (
    mean_over_processes as mean_over_processes,
)
from .distributed import (
    num_processes as num_processes,
)
from .distributed import (
    process_index as process_index,
)
from .distributed import (
    start_processes as start_processes,
)
from .distributed import (
    sum_over_processes as sum_over_processes,
)
from .divergences import (
    derivative as derivative,
)
from .flops import (
    count_pass as count_pass,
)
from .kl import (
    AdaptiveKL as AdaptiveKL,
)
from .kl import (
    FixedKL as FixedKL,
)
from .kl import (
    LinearKL as LinearKL,
)
from .kl import (
    TargetKL as TargetKL,
)
from .kl import (
    kl_controller as kl_controller,
)
from .kl import (
    kl_estimate as kl_estimate,
)
from .memory import (
    is_out_of_memory as is_out_of_memory,
)
from .memory import (
    until_it_fits as until_it_fits,
)
from .mismatch import (
    mismatch_weights as mismatch_weights,
)
from .ranking_losses import (
    Rankings as Rankings,
)
from .ranking_losses import (
    bradley_terry as bradley_terry,
)
from .ranking_losses import (
    infonce as infonce,
)
from .ranking_losses import (
    log_odds as log_odds,
)
from .ranking_losses import (
    logistic_loss as logistic_loss,
)
from .ranking_losses import (
    nca as nca,
)
from .ranking_losses import (
    pair_accuracy as pair_accuracy,
)
from .ranking_losses import (
    plackett_luce as plackett_luce,
)
from .ranking_losses import (
    ranks_of_scores as ranks_of_scores,
)
from .ranking_losses import (
    reverse_kl_to_best as reverse_kl_to_best,
)
from .ranking_losses import (
    with_ordered_pairs as with_ordered_pairs,
)
from .rollouts import (
    highest_of_groups as highest_of_groups,
)
from .rollouts import (
    rollout_figures as rollout_figures,
)
from .surrogates import (
    aggregate as aggregate,
)
from .surrogates import (
    clipped_policy_loss as clipped_policy_loss,
)
from .surrogates import (
    clipped_value_loss as clipped_value_loss,
)
from .surrogates import (
    off_policy_mask as off_policy_mask,
)
from .surrogates import (
    pooled_log_ratio as pooled_log_ratio,
)
from .surrogates import (
    truncated_policy_loss as truncated_policy_loss,
)
