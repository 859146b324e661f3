from .batch import (
    GroupBatch as GroupBatch,
)
from .batch import (
    Totals as Totals,
)
from .checking import (
    OptionsError as OptionsError,
)
from .checking import (
    Problem as Problem,
)
from .companions import (
    Alarm as Alarm,
)
from .companions import (
    Companion as Companion,
)
from .companions import (
    Metrics as Metrics,
)
from .components import (
    Component as Component,
)
from .components import (
    Context as Context,
)
from .errors import (
    AlignkitError as AlignkitError,
)
from .errors import (
    CheckpointError as CheckpointError,
)
from .errors import (
    InputError as InputError,
)
from .errors import (
    Interrupted as Interrupted,
)
from .errors import (
    PluginError as PluginError,
)
from .errors import (
    StoppedByCheck as StoppedByCheck,
)
from .errors import (
    closest as closest,
)
from .errors import (
    visible as visible,
)
from .files import (
    telling_when_full as telling_when_full,
)
from .files import (
    write_synced as write_synced,
)
from .footprint import (
    Footprint as Footprint,
)
from .footprint import (
    Held as Held,
)
from .footprint import (
    Load as Load,
)
from .hookspecs import (
    Register as Register,
)
from .hookspecs import (
    hookimpl as hookimpl,
)
from .interfaces import (
    INTERFACE_VERSION as INTERFACE_VERSION,
)
from .interfaces import (
    Algorithm as Algorithm,
)
from .interfaces import (
    Ask as Ask,
)
from .interfaces import (
    Feed as Feed,
)
from .interfaces import (
    ForeignTrainer as ForeignTrainer,
)
from .interfaces import (
    HasValues as HasValues,
)
from .interfaces import (
    MetricSink as MetricSink,
)
from .interfaces import (
    Model as Model,
)
from .interfaces import (
    Optimizer as Optimizer,
)
from .interfaces import (
    Policy as Policy,
)
from .interfaces import (
    PreferenceSource as PreferenceSource,
)
from .interfaces import (
    RewardSource as RewardSource,
)
from .interfaces import (
    Scorer as Scorer,
)
from .options import (
    AlarmOptions as AlarmOptions,
)
from .options import (
    ComponentSpec as ComponentSpec,
)
from .options import (
    Config as Config,
)
from .options import (
    Count as Count,
)
from .options import (
    EarlyStopOptions as EarlyStopOptions,
)
from .options import (
    Fraction as Fraction,
)
from .options import (
    IterationOptions as IterationOptions,
)
from .options import (
    LearningOptions as LearningOptions,
)
from .options import (
    LoopOptions as LoopOptions,
)
from .options import (
    MetricsSpec as MetricsSpec,
)
from .options import (
    MovingReferenceOptions as MovingReferenceOptions,
)
from .options import (
    Natural as Natural,
)
from .options import (
    NonNegative as NonNegative,
)
from .options import (
    PolicySpec as PolicySpec,
)
from .options import (
    Positive as Positive,
)
from .options import (
    PreferencesSpec as PreferencesSpec,
)
from .options import (
    PtxOptions as PtxOptions,
)
from .options import (
    RewardSpec as RewardSpec,
)
from .options import (
    Role as Role,
)
from .options import (
    RolloutOptions as RolloutOptions,
)
from .options import (
    Sampling as Sampling,
)
from .options import (
    StopOptions as StopOptions,
)
from .options import (
    TrainingOptions as TrainingOptions,
)
from .options import (
    has_nvidia_driver as has_nvidia_driver,
)
from .options import (
    may_be_model as may_be_model,
)
from .options import (
    require_package as require_package,
)
from .outputs import (
    PolicyOutput as PolicyOutput,
)
from .outputs import (
    ScorerOutput as ScorerOutput,
)
from .outputs import (
    TrainResult as TrainResult,
)
from .plugins import (
    build_component as build_component,
)
from .plugins import (
    make_context as make_context,
)
from .plugins import (
    registry as registry,
)
from .recipe.functions import (
    check_function as check_function,
)
from .recipe.functions import (
    load_function as load_function,
)
from .records import (
    Group as Group,
)
from .records import (
    Message as Message,
)
from .records import (
    Prompt as Prompt,
)
from .records import (
    check_storable as check_storable,
)
from .records import (
    content_text as content_text,
)
from .records import (
    message_text as message_text,
)
from .records import (
    read_groups as read_groups,
)
from .records import (
    write_groups as write_groups,
)
from .remote import (
    RetryGate as RetryGate,
)
from .remote import (
    Unanswered as Unanswered,
)
from .remote import (
    check_address as check_address,
)
from .remote import (
    check_key_variable as check_key_variable,
)
from .remote import (
    redacted as redacted,
)
from .remote import (
    retry_after as retry_after,
)
from .runs.api import (
    run as run,
)
from .runs.api import (
    train as train,
)
from .runs.results import (
    Run as Run,
)
from .samplers import (
    AheadOptions as AheadOptions,
)
from .samplers import (
    OwnSampler as OwnSampler,
)
from .samplers import (
    Sampler as Sampler,
)
from .samplers import (
    Servable as Servable,
)
from .training.signals import (
    StopSignals as StopSignals,
)
