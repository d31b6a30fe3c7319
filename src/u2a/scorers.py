"""Scorers: what an answer to a prompt is worth, by a reward model or by a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2a.models.source import TOKENIZER_FILES, check_weights, has_tokenizer
from u2a.plugins import import_path
from u2a.types import Message, UserError

if TYPE_CHECKING:
    import torch

    from u2a.data.render import Renderer

Scorer = Callable[[Sequence[list[Message]], Sequence[str]], NDArray[np.float64]]
"""N prompts and as many answers -> rewards (N,), higher = better, in a unit of its own. Some may be empty."""

BATCH = 8
"""Texts that a reward model reads at once."""
LONGEST = 2048
"""Most tokens of prompt and answer that a reward model reads, fewer where it has fewer positions; prompts are
cut on the left."""


def named_scorer(
    model: str, function: str, device: torch.device | str = "cpu", *, prefix: str = "--objective-"
) -> Scorer:
    """The scorer that one of two options names, checked as far as that goes without loading a model.

    Args:
        model: `--objective-reward-model`. function: `--objective-reward-function`.
        device: where a reward model goes. prefix: of the flags, for errors.

    Raises:
        UserError: none or both are named, or the one that is named is unusable.
    """
    flags = f"{prefix}reward-model", f"{prefix}reward-function"
    if bool(model) == bool(function):
        raise UserError(
            f"{flags[0]} or {flags[1]}: name one of them, what answers are scored by"
            if not model
            else f"{flags[0]} and {flags[1]}: name only one of them"
        )
    return model_scorer(model, device, flags[0]) if model else function_scorer(function, flags[1])


# -- a reward model -----------------------------------------------------------------------------------------


def model_scorer(source: str, device: torch.device | str, flag: str = "--reward-model") -> Scorer:
    """Scores by a sequence-classification model with one output, loaded when it is first asked.

    Each answer is rendered behind its prompt with the reward model's own chat template. Without one, a
    tokenizer that has a separator, as BERT's and DeBERTa's, joins the prompt's turns and the answer as its
    pair; any other has `Renderer`'s plain turns.

    Args:
        source: folder with safetensors, or Hub id. flag: what named it, for errors.

    Raises:
        UserError: `source` is no such model.
    """
    refuse_other_kinds(source, flag)

    def score(prompts: Sequence[list[Message]], answers: Sequence[str]) -> NDArray[np.float64]:
        texts = list(zip(prompts, answers, strict=True))
        parts = [texts[begin : begin + BATCH] for begin in range(0, len(texts), BATCH)]
        found = [_model_scores(source, flag, device, part) for part in parts]
        return np.concatenate([np.zeros(0), *found])

    return score


def _model_scores(
    source: str, flag: str, device: torch.device | str, texts: Sequence[tuple[list[Message], str]]
) -> NDArray[np.float64]:
    import torch

    model, tokenizer, renderer = _loaded(source, flag)
    made = [_inputs(tokenizer, renderer, prompt, answer) for prompt, answer in texts]
    inputs = tokenizer.pad(made, return_tensors="pt", verbose=False)
    with torch.no_grad():
        logits = model.to(device)(**inputs.to(device)).logits
    return logits[:, 0].double().cpu().numpy()


def _inputs(
    tokenizer: Any, renderer: Renderer, prompt: Sequence[Message], answer: str
) -> dict[str, list[int]]:
    """What the model reads of one text, `renderer.max_length` tokens at most. Special tokens that the prompt
    or the answer spells out are text: it cannot write a turn of its own and be scored for it."""
    longest = renderer.max_length
    if tokenizer.chat_template is not None or tokenizer.sep_token is None:
        return {"input_ids": renderer.whole_ids(prompt, answer)[-longest:]}
    question = "\n".join(turn["content"] for turn in prompt)
    as_text: dict[str, Any] = {"split_special_tokens": True, "verbose": False}
    own = len(tokenizer(answer, add_special_tokens=False, **as_text)["input_ids"])
    fits = own + tokenizer.num_special_tokens_to_add(pair=True) < longest
    how = "only_first" if fits else "longest_first"
    return dict(tokenizer(question, answer, truncation=how, max_length=longest, **as_text))


def positions(config: Mapping[str, Any], otherwise: int) -> int:
    """Tokens that a model has positions for, by its configuration."""
    return config.get("max_position_embeddings") or otherwise


def refuse_other_kinds(source: str, flag: str) -> None:
    """Looks at a model's configuration, and in a folder for weights and tokenizer, so that what is no reward
    model is found at once.

    Raises:
        UserError: `source` is no sequence-classification model with one output, or not all of one.
    """
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unusable(source, flag, error) from None
    kinds = config.architectures or []
    if config.num_labels != 1 or not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        found = f"{', '.join(kinds) or 'no architecture'}, {config.num_labels} outputs"
        raise UserError(f"{flag} {source} ({found}): a reward model classifies sequences and has one output")
    folder = Path(source).expanduser()
    if folder.is_dir():
        try:
            check_weights(folder, "model")
        except UserError as error:
            raise UserError(f"{flag}: {error}") from None
        if not has_tokenizer(folder):
            raise UserError(f"{flag} {source} has no tokenizer ({', '.join(TOKENIZER_FILES[:3])}, …)")


def _unusable(source: str, flag: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{flag} {source} does not load: {reason}")


@lru_cache(maxsize=2)
def _loaded(source: str, flag: str) -> tuple[Any, Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from u2a.data.render import Renderer

    try:
        safe: dict[str, Any] = {"trust_remote_code": False}
        model: Any = AutoModelForSequenceClassification.from_pretrained(source, use_safetensors=True, **safe)
        tokenizer: Any = AutoTokenizer.from_pretrained(source, **safe)
    except (OSError, ValueError) as error:
        raise _unusable(source, flag, error) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
    model.config.pad_token_id = tokenizer.pad_token_id
    longest = min(LONGEST, tokenizer.model_max_length, positions(model.config.to_dict(), LONGEST))
    return model.eval(), tokenizer, Renderer(tokenizer, max_length=longest)


# -- a function of the user's own ---------------------------------------------------------------------------


def function_scorer(path: str, flag: str) -> Scorer:
    """Scores by a Python function, called as a `Scorer` is, with all answers of a draw at once.

    Args:
        path: `module:function`; the module is looked for where Python looks, then in the current folder. Its
            code runs, so only the command line may name it. flag: what named it, for errors.

    Raises:
        UserError: there is no such function; also whenever it raises something itself.
    """
    function = import_path(path, flag)
    if not callable(function):
        raise UserError(f"{flag} {path}: it is no function but {type(function).__name__}")

    def score(prompts: Sequence[list[Message]], answers: Sequence[str]) -> NDArray[np.float64]:
        try:
            return np.asarray(function(prompts, answers), dtype=np.float64)
        except Exception as error:
            raise UserError(f"{flag} {path} raised {type(error).__name__}: {error}") from error

    return score
