"""Probabilities of a text classifier's labels: a transformers model, or an ONNX one through onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from u2a.evaluation.figure import Array
from u2a.scorers import positions
from u2a.types import UserError

if TYPE_CHECKING:
    import torch

Device: TypeAlias = "torch.device | str"

BATCH = 16
"""Texts classified at once."""
LONGEST = 512
"""Most tokens of a text that is read, fewer where the model has fewer positions; the rest is cut off."""

Texts = Sequence[tuple[str, ...]]
"""Each a text, or two that the classifier's tokenizer joins as a pair."""


@dataclass(frozen=True)
class LabelProbabilities:
    """A classifier. `logits` takes texts and a device and gives (B, L) for the L `labels`; `exclusive`: one
    label a text (softmax), else each on its own (sigmoid)."""

    labels: tuple[str, ...]
    exclusive: bool
    logits: Callable[[Texts, Device], Array]

    def __call__(self, texts: Texts, device: Device) -> Array:
        """Probabilities (N, L) of the labels; rows add up to 1 where the labels are exclusive.

        Raises:
            UserError: the classifier does not give L numbers a text.
        """
        from scipy.special import expit, softmax

        found = [np.zeros((0, len(self.labels)))]
        for begin in range(0, len(texts), BATCH):
            found.append(self.logits(texts[begin : begin + BATCH], device))
            if found[-1].shape[1:] != (len(self.labels),):
                raise UserError(
                    f"the classifier gives numbers of shape {found[-1].shape} for texts with "
                    f"{len(self.labels)} labels: {', '.join(self.labels)}"
                )
        logits = np.concatenate(found)
        return softmax(logits, axis=1) if self.exclusive else expit(logits)


def load_classifier(source: str, flag: str) -> LabelProbabilities:
    """The classifier in a folder or on the Hub; a folder with `model.onnx` and no safetensors is ONNX.

    Softmax or sigmoid is chosen as transformers' own text classification pipeline does: sigmoid for a
    configured `multi_label_classification` and for a single label.

    Args:
        flag: what named the source, for errors.

    Raises:
        UserError: it is no sequence classifier, or one that gives numbers instead of labels; its weights are
            no safetensors; its code would have to run; onnxruntime is missing for an ONNX model.
    """
    folder = Path(source).expanduser()
    if (folder / "model.onnx").is_file() and not any(folder.glob("*.safetensors")):
        return _onnx(folder, flag)
    return _transformers(source, flag)


def _classifier(
    config: Any, source: str, flag: str, logits: Callable[[Texts, Device], Array]
) -> LabelProbabilities:
    names, kind = config.get("id2label") or {}, config.get("problem_type")
    labels = tuple(str(names[place]) for place in sorted(names, key=int))
    if not labels or kind == "regression":
        raise UserError(f"{flag} {source} has no labels (id2label in its config.json): it is no classifier")
    exclusive = kind != "multi_label_classification" and len(labels) > 1
    return LabelProbabilities(labels, exclusive, logits)


def _unusable(source: object, flag: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{flag} {source} does not load: {reason}")


# -- transformers -------------------------------------------------------------------------------------------


def _transformers(source: str, flag: str) -> LabelProbabilities:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    safe: dict[str, Any] = {"trust_remote_code": False}
    try:
        config: Any = AutoConfig.from_pretrained(source, **safe)
        kinds = config.architectures or []
        if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
            found = ", ".join(kinds) or "no architecture"
            raise UserError(f"{flag} {source} ({found}): it does not classify sequences")
        model: Any = AutoModelForSequenceClassification.from_pretrained(source, use_safetensors=True, **safe)
        tokenizer: Any = AutoTokenizer.from_pretrained(source, **safe)
    except (OSError, ValueError) as error:
        raise _unusable(source, flag, error) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    model.config.pad_token_id = tokenizer.pad_token_id
    longest = min(LONGEST, tokenizer.model_max_length, positions(config.to_dict(), LONGEST))
    return _classifier(
        config.to_dict(), source, flag, partial(_transformers_logits, model.eval(), tokenizer, longest)
    )


def _transformers_logits(model: Any, tokenizer: Any, longest: int, texts: Texts, device: Device) -> Array:
    import torch

    columns = [list(column) for column in zip(*texts, strict=True)]
    inputs = tokenizer(
        *columns,
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=longest,
        split_special_tokens=True,  # an answer must not write the `[SEP]` between prompt and answer
    )
    with torch.no_grad():
        return model.to(device)(**inputs.to(device)).logits.double().cpu().numpy()


# -- ONNX ---------------------------------------------------------------------------------------------------


def _onnx(folder: Path, flag: str) -> LabelProbabilities:
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{flag} {folder} is an ONNX model, which needs: pip install 'u2a[onnx]'") from None
    from tokenizers import Tokenizer

    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise UserError(f"{flag} {folder} has no {name} beside its model.onnx")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    except Exception as error:  # both libraries raise classes of their own, without a common base
        raise _unusable(folder, flag, error) from None
    tokenizer.encode_special_tokens = True  # read as text, as in `_transformers_logits`
    tokenizer.enable_truncation(min(LONGEST, positions(config, LONGEST)))
    tokenizer.enable_padding(pad_id=config.get("pad_token_id") or 0)
    names = [each.name for each in session.get_inputs()]
    if strange := [name for name in names if name not in _ONNX_INPUTS]:
        raise UserError(f"{flag} {folder}: its model.onnx asks for {', '.join(strange)}, which no text has")
    return _classifier(config, str(folder), flag, partial(_onnx_logits, session, tokenizer, names))


_ONNX_INPUTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Name of an input -> attribute of an encoding."""


def _onnx_logits(session: Any, tokenizer: Any, names: Sequence[str], texts: Texts, _device: Device) -> Array:
    encodings = tokenizer.encode_batch([text if len(text) > 1 else text[0] for text in texts])
    inputs = {
        name: np.array([getattr(each, _ONNX_INPUTS[name]) for each in encodings], np.int64) for name in names
    }
    return np.asarray(session.run(None, inputs)[0], np.float64)
