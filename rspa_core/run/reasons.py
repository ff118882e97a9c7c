"""Why attention calls over the video stay dense: kinds of reasons, and one with its details."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Reason(Enum):
    """Kinds of reasons. The value is the text for people, with a place for each detail."""

    # Of the schedule.
    BEFORE_START = "first {:g} %"
    AFTER_END = "last {:g} %"
    STEP_OFF = "step is off"
    DENSE_STEP = "dense step"
    ZERO_SPARSITY = "sparsity 0"
    RAMP = "ramp keeps all"
    UNKNOWN_STEP = "number of steps unknown (pass scheduler or num_steps, or call set_step)"
    # Of the model call.
    MIN_TOKENS = "{} video tokens, below min_tokens {}"
    UNSUPPORTED_MODEL = "model class {} is not supported ({})"
    IMAGE_MODEL = "an image model, and this node is for videos"
    NO_VIDEO = "latent has {} dimensions, a video has 5"
    NO_TEXT = "no text condition"
    TRAINED_SPARSE = (
        "this checkpoint was trained with a sparse attention of its own (VSA, in ComfyUI's own "
        "sparse attention node)"
    )
    UNKNOWN_CONDITIONS = "conditions not understood ({}: {})"
    FRAME_CACHE = (
        "autoregressive sampling: each call is a few frames beside a cache of earlier ones"
    )
    AMBIGUOUS_LENGTH = "{} video tokens are as many as the condition has"
    NOT_JOINED = "attention frame by frame, whose parts were not joined"
    NON_FINITE = "non-finite values, forward repeated dense"
    OUTSIDE = "outside of a forward of the transformer"
    # Of the block.
    DENSE_BLOCK = "dense_blocks"
    DENSE_IN_PROFILE = "dense in the profile"
    # Of the attention call.
    OTHER_LENGTH = "{} tokens where {} were expected"
    POSE_BRANCH = "the pose's own attention, which may serve all steps"
    FRAMES_NOT_PROBED = "the probe does not measure attention frame by frame"
    MASKS_NOT_PROBED = "samples with attention masks of their own, which the probe does not measure"
    WEIGHTS_NOT_PROBED = "the probe does not measure guides with a strength"
    UNKNOWN_CALL = "unknown form of attention call"
    UNKNOWN_ROTARY = "unknown form of rotary embedding"
    SPLIT_ROWS = "{} of {} rows under a mask of their own"
    MASK_FORM = "attention mask of shape {}, {}"
    MASK_WEIGHTS = "attention mask that weighs keys"
    MASK_VIDEO = "attention mask over video tokens"
    MASK_NOT_AT_END = "attention mask that is not padding at the end"
    ATTN_PRECISION = "attn_precision {}"
    ARGUMENT = "attention argument {}"
    PROCESSOR = "attention processor {}"
    PROCESSOR_REPLACED = "attention processor {}, set after the installation"
    MASK_PARALLEL = "attention mask under context parallelism"
    RING = "ring attention: no GPU ever has all keys (Ulysses can be sparse)"
    PARALLEL_TEXT = "context parallelism over a sequence that holds text"
    GRADIENTS = "gradients are recorded (call the model under torch.no_grad)"
    GRAPH = "a CUDA graph is being recorded: it would be played again at other steps"
    # Of what happened.
    PROBED = "measured by the probe"
    NO_BACKEND = "{}"
    FAILED = "{}: {}"
    NON_FINITE_ANYWAY = "non-finite values with dense attention too"
    NON_FINITE_KEPT = "non-finite values, in a forward that must not be repeated ({})"

    @property
    def is_of_schedule(self) -> bool:
        """Whether the schedule says so, and another one would not."""
        return self in _OF_SCHEDULE

    @property
    def is_before_sparse_steps(self) -> bool:
        """Whether sparse steps are likely to follow in the same run."""
        return self in (Reason.BEFORE_START, Reason.STEP_OFF, Reason.DENSE_STEP, Reason.RAMP)

    @property
    def is_share_of_sampling(self) -> bool:
        """Whether it is about a share of the sampling."""
        return self in (Reason.BEFORE_START, Reason.AFTER_END)


_OF_SCHEDULE = frozenset(
    {
        Reason.BEFORE_START,
        Reason.AFTER_END,
        Reason.STEP_OFF,
        Reason.DENSE_STEP,
        Reason.ZERO_SPARSITY,
        Reason.RAMP,
        Reason.UNKNOWN_STEP,
    }
)


@dataclass(frozen=True)
class DenseReason:
    """One reason with what it is about; equal reasons are counted together.

    Attributes:
        reason: the kind.
        details: numbers or texts for the places of its text.
    """

    reason: Reason
    details: tuple[object, ...] = ()

    @property
    def code(self) -> str:
        """Stable name of the kind, for files and scripts."""
        return self.reason.name.lower()

    @property
    def short(self) -> str:
        """For the status line: "first 20 %"."""
        return self.reason.value.format(*self.details)

    @property
    def text(self) -> str:
        """For lists: "schedule: first 20 %"."""
        return f"schedule: {self.short}" if self.reason.is_of_schedule else self.short


def why(reason: Reason, *details: object) -> DenseReason:
    """A `DenseReason`."""
    return DenseReason(reason, details)
