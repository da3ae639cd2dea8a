"""The picture, the map over it and the answer beside it, as HTML. Names of files and labels are escaped here."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from space.many import Agreement, Found
from space.predictor import Answer, Predictor
from space.saliency import layer
from space.texts import Texts
from space.words import Words, describe, in_digits

SIDE = 1600  # pixels of the longer side of a picture that is shown; the network is given the whole one
MAP_SIDE = 512  # the same of a map, which is smooth

# The two sliders move the map without asking the server, and stay where they are when the next answer comes. A frame
# of a clip is chosen the same way.
SCRIPT = """
const kept = {};
const apply = (slider) => {
  kept[slider.className] = slider.value;
  element.style.setProperty('--' + slider.className, slider.value + '%');
};
const show = (frame) => element.querySelectorAll('.frame').forEach(
  (figure) => { figure.hidden = figure.dataset.frame !== frame; });
element.addEventListener('input', ({target}) => {
  if (target.type === 'range') apply(target);
  if (target.type === 'radio') show(target.value);
});
watch('value', () => {
  element.querySelectorAll('input[type=range]').forEach((slider) => {
    if (kept[slider.className] !== undefined) slider.value = kept[slider.className];
  });
  element.scrollIntoView({block: 'nearest', behavior: 'smooth'});
});
"""

# A picture of the gallery grows when it is chosen, and shrinks again.
GALLERY_SCRIPT = """
element.addEventListener('click', ({target}) => {
  const tile = target.closest('button');
  if (tile) tile.setAttribute('aria-expanded', tile.getAttribute('aria-expanded') !== 'true');
});
"""


def empty(text: str) -> str:
    """The stage with nothing on it, but for a line of text."""
    return f'<div class="stage empty"><p>{escape(text)}</p></div>'


def refusal(reason: str) -> str:
    """The stage with the line that says why there is no answer."""
    return f'<div class="stage empty"><p class="refusal" role="alert">{escape(reason)}</p></div>'


def image_stage(
    predictor: Predictor, image: Image.Image, answer: Answer, texts: Texts, shown: int | None = None
) -> str:
    """An RGB image under its map, and the answer. shown: the class that the map speaks for."""
    words = describe(predictor, answer, texts, shown)
    figure = f'<figure class="frame">{_picture(image, answer, words, texts)}</figure>'
    return f'<div class="stage">{figure}{_sliders(texts)}</div>{_answer(predictor, answer, words, texts)}'


def clip_stage(
    predictor: Predictor,
    frames: Sequence[tuple[int, Image.Image]],
    answers: Sequence[Answer],
    texts: Texts,
) -> str:
    """The frames of a clip, one of them to be seen, a time line to choose it by, and the clip's answer.

    frames: (number in the clip, RGB image) of each, the last one of the clip among them. The time line is of the
    positive class or, where there are more than two, of the one that the clip is called.
    """
    clip = predictor.pool(answers)
    told = 1 if len(predictor.labels) == 2 else int(predictor.decide(clip.probabilities[None])[0])
    label, shares = predictor.labels[told], [float(answer.probabilities[told]) for answer in answers]
    first = predictor.surest(answers)
    figures, points = [], []
    for place, ((number, image), answer) in enumerate(zip(frames, answers, strict=True)):
        words = describe(predictor, answer, texts)
        said = texts("clip.frame", number=number, label=label, probability=f"{shares[place]:.3f}")
        flagged = f", {texts('clip.flagged')}" if answer.abstained else ""
        hidden = "" if place == first else "hidden"
        figures.append(
            f'<figure class="frame" data-frame="{place}" {hidden}>{_picture(image, answer, words, texts)}'
            f"<figcaption>{escape(said + flagged)}. {escape(words.where)}</figcaption></figure>"
        )
        points.append(
            f'<label class="point{" unlike" if answer.abstained else ""}" title="{escape(said + flagged)}">'
            f'<input type="radio" name="frame" value="{place}" aria-label="{escape(said + flagged)}"'
            f'{" checked" if place == first else ""}><i style="--share: {100 * shares[place]:.1f}%"></i></label>'
        )
    threshold = f'<hr style="bottom: {100 * predictor.threshold:.1f}%">' if len(predictor.labels) == 2 else ""
    words = describe(predictor, clip, texts, what="clip")
    return (
        f'<div class="stage">{"".join(figures)}{_sliders(texts)}</div>'
        f'<fieldset class="timeline"><legend>{escape(texts("clip.timeline", label=label))}</legend>'
        f"<div>{threshold}{''.join(points)}</div></fieldset>"
        f"{_answer(predictor, clip, words, texts)}"
        f"<p>{escape(texts('clip.frames', shown=len(frames), total=frames[-1][0] + 1))}</p>"
    )


def summary(found: Sequence[Found], labels: Sequence[str], agreed: Agreement | None, csv: str, texts: Texts) -> str:
    """How many files have which prediction, what true labels say of them, and the table (csv) to take along."""
    rows = [each.row for each in found if not each.rest]
    told = [each["prediction"] for each in rows]
    nothing = texts("many.nothing")
    counts = ", ".join(f"{told.count(name)} {name or nothing}" for name in [*labels, ""] if name in told)
    lines = [f"<p>{escape(texts('many.counted', count=len(rows), counts=counts))}</p>"]
    if rest := next((each.row["path"] for each in found if each.rest), None):
        lines.append(f"<p><strong>{escape(texts('many.rest', name=rest))}</strong></p>")
    names = [each["path"] for each in rows]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        lines.append(f"<p>{escape(texts('many.repeated', name=repeated))}</p>")
    if paged := [each.row["path"] for each in found if each.first_alone]:
        lines.append(f"<p>{escape(texts('many.pages', count=len(paged), name=paged[0]))}</p>")
    if agreed:
        called = [*labels, ""]
        count = sum(agreed.counts.values())
        head = "".join(f'<th scope="col">{escape(name or nothing)}</th>' for name in called)
        body = "".join(
            f'<tr><th scope="row">{escape(true)}</th>'
            + "".join(f"<td>{agreed.counts.get((true, name), 0)}</td>" for name in called)
            + "</tr>"
            for true in labels
        )
        lines.append(
            f"<table><caption>{escape(texts('many.labelled', count=count))}</caption>"
            f'<tr><th scope="col">{escape(texts("many.true"))}</th>{head}</tr>{body}</table>'
        )
        if agreed.auc is not None:
            lines.append(f"<p>{escape(texts('many.auc', auc=f'{agreed.auc:.3f}', positive=labels[-1]))}</p>")
    address = f"data:text/csv;charset=utf-8;base64,{base64.b64encode(csv.encode()).decode()}"
    lines.append(f'<p><a download="predictions.csv" href="{address}">{escape(texts("many.csv"))}</a></p>')
    return f'<div class="summary" role="status">{"".join(lines)}</div>'


def gallery(found: Sequence[Found], texts: Texts) -> str:
    """The pictures that there are, each with its name and answer."""
    tiles = []
    for each in found:
        if each.picture is None:
            continue
        name, answer = each.row["path"], each.row["prediction"] or texts("many.nothing")
        picture = f'<img src="{_address(each.picture, "JPEG", quality=85)}" alt="">'
        unlike = ' class="unlike"' if each.row["abstained"] else ""
        tiles.append(
            f'<li{unlike}><button type="button" aria-expanded="false">{picture}'
            f"<span>{escape(name)}</span><b>{escape(answer)}</b></button></li>"
        )
    title = escape(texts("many.gallery", count=len(tiles)))
    return f"<h2>{title}</h2><ul class='tiles'>{''.join(tiles)}</ul>" if tiles else ""


def _picture(image: Image.Image, answer: Answer, words: Words, texts: Texts) -> str:
    seen = image.copy()
    seen.thumbnail((SIDE, SIDE))
    pictures = f'<img src="{_address(seen, "JPEG", quality=95)}" alt="{escape(texts("stage.picture"))}">'
    if answer.saliency is not None:
        scale = min(1, MAP_SIDE / max(image.size))
        size = tuple(max(1, round(scale * side)) for side in image.size)
        covering = _address(layer(answer.saliency, size), "PNG", compress_level=1)
        pictures += f'<img class="map" src="{covering}" alt="{escape(words.where)}">'
    return f'<div class="picture" style="--ratio: {image.width / image.height:.4f}">{pictures}</div>'


def _sliders(texts: Texts) -> str:
    return "".join(
        f"<label>{escape(texts(f'stage.{name}'))}"
        f'<input type="range" class="{name}" min="0" max="100" value="{value}"></label>'
        for name, value in (("divider", 100), ("strength", 70))
    )


def _answer(predictor: Predictor, answer: Answer, words: Words, texts: Texts) -> str:
    bars = []
    for index, (label, probability) in enumerate(zip(predictor.labels, answer.probabilities, strict=True)):
        share, mark = f"{100 * probability:.1f}", ""
        if len(predictor.labels) == 2 and index == 1:
            told = texts("answer.threshold", threshold=in_digits(predictor.threshold))
            mark = f'<i style="left: {100 * predictor.threshold:.1f}%" title="{escape(told)}"></i>'
        bar = f'<span class="bar"><b style="width: {share}%"></b>{mark}</span>'
        bars.append(f"<dt>{escape(label)}</dt><dd>{bar}{share} %</dd>")
    doubts = "".join(f'<p class="doubt">{escape(doubt)}</p>' for doubt in words.doubts)
    return (
        f'<section class="answer{" unlike" if answer.abstained else ""}" role="status"><h2>{escape(words.called)}</h2>'
        f'{doubts}<dl aria-label="{escape(texts("answer.probabilities"))}">{"".join(bars)}</dl>'
        f"<p>{escape(words.side)}</p><p>{escape(words.where)}</p></section>"
    )


def _address(image: Image.Image, kind: str, **settings) -> str:
    """The picture itself as an address, so that none is left on the server's disk."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
