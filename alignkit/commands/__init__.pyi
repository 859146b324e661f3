from ..recipe.reading import (
    read_recipe as read_recipe,
)
from ..recipe.resolved import (
    Resolved as Resolved,
)
from ..recipe.tables import (
    default_cache as default_cache,
)
from ..runs.dry import (
    dry_run as dry_run,
)
from ..runs.dry import (
    size_text as size_text,
)
from ..runs.evaluation import (
    Estimate as Estimate,
)
from ..runs.evaluation import (
    compare_samples as compare_samples,
)
from ..runs.evaluation import (
    ranking_accuracy as ranking_accuracy,
)
from ..runs.history import (
    split_by_prompt as split_by_prompt,
)
from ..runs.plan import (
    plan as plan,
)
from ..runs.reporting import (
    FIGURES as FIGURES,
)
from ..runs.reporting import (
    Reporter as Reporter,
)
from ..runs.reporting import (
    make_reporter as make_reporter,
)
from ..runs.results import (
    SAMPLE_FIGURES as SAMPLE_FIGURES,
)
from ..runs.run import (
    run_recipe as run_recipe,
)
from ..versions import (
    main_versions as main_versions,
)
from .flags import (
    AsJson as AsJson,
)
from .flags import (
    Columns as Columns,
)
from .flags import (
    OptimizerName as OptimizerName,
)
from .flags import (
    Overrides as Overrides,
)
from .flags import (
    Overwrite as Overwrite,
)
from .flags import (
    PluginFiles as PluginFiles,
)
from .flags import (
    PolicyName as PolicyName,
)
from .flags import (
    PreferencesName as PreferencesName,
)
from .flags import (
    Quiet as Quiet,
)
from .flags import (
    Recipe as Recipe,
)
from .flags import (
    RecipeOption as RecipeOption,
)
from .flags import (
    Resume as Resume,
)
from .flags import (
    RewardName as RewardName,
)
from .flags import (
    SamplerName as SamplerName,
)
from .flags import (
    column_names as column_names,
)
from .flags import (
    column_overrides as column_overrides,
)
from .flags import (
    lines_of as lines_of,
)
from .flags import (
    show as show,
)
