"""What a terminal shows of an answer."""

import contextlib
import sys

import click

from .reasoning import ReasoningFilter
from .result import Answer
from .stream import Stream
from .votes import Vote

# A terminal obeys control characters, and the model may write any. Lone surrogates are no text that UTF-8 can hold.
_CONTROL = {
    code: "\ufffd" for code in (*range(32), *range(127, 160), *range(0xD800, 0xE000)) if chr(code) not in "\n\t"
}


def harmless(text: str) -> str:
    """`text` of several lines without what a terminal would obey, or UTF-8 cannot hold."""
    return text.translate(_CONTROL)


def show_stream(stream: Stream, *, quiet: bool = False) -> Answer:
    """Print the reasoning as it comes, unless `quiet`; the answer at its end."""
    reasoning = ReasoningFilter()
    # Closed at once where the reader is gone or presses Ctrl-C, for the audit log.
    with contextlib.closing(stream):
        for piece in stream:
            if not quiet:
                click.echo(harmless(reasoning.feed(piece)), nl=False)
    if not quiet:
        click.echo(harmless(reasoning.flush().rstrip()) + "\n")
    return stream.answer


def choice_line(answer: Answer, options: dict[str, str]) -> str:
    """The choice with its text, how sure it is, and what was unusual about reading it."""
    if answer.choice:
        flags = f"  ({', '.join(answer.flags)})" if answer.flags else ""
        return f"Answer: {answer.choice}) {answer.choice_text}{_certainty(answer)}{flags}"
    if options:
        return f"Answer: none of the options could be read from the text (stopped by: {answer.finish_reason})"
    return "Answer: the question offered no options; see the text above"


def timing_line(answer: Answer) -> str:
    """How long each stage took, and why decoding stopped."""
    times = answer.timings
    rate = times.decode_tokens_per_s
    speed = f" ({rate:.1f} tokens/s)" if rate else ""
    cached = f", {answer.cached_tokens} of them kept from before" if answer.cached_tokens else ""
    return (
        f"load {times.load_s:.2f} s, preprocess {times.preprocess_s:.2f} s, vision {times.vision_s:.2f} s "
        f"({answer.visual_tokens} visual tokens), prefill {times.prefill_s:.2f} s ({answer.prompt_tokens} tokens"
        f"{cached}), decode {times.decode_s:.2f} s{speed}; {answer.new_tokens} new tokens, stopped by: "
        f"{answer.finish_reason}"
    )


def vote_lines(vote: Vote) -> str:
    """Each answer's reasoning and choice, then the count."""
    lines = []
    for number, answer in enumerate(vote.answers, start=1):
        reasoning = harmless(answer.reasoning.strip())
        lines.append(f"{number}: {reasoning}\n   -> {answer.choice or 'no choice'}\n")
    if vote.choice is None:
        return "\n".join([*lines, "Answer: none of the answers has a choice"])
    counts = ", ".join(f"{letter} {count}" for letter, count in vote.counts.items())
    return "\n".join([*lines, f"Answer: {vote.choice}) {vote.choice_text}  [votes: {counts} of {len(vote.answers)}]"])


def status(line: str) -> None:
    """Say what is going on where a person waits at a terminal."""
    if sys.stderr is not None and sys.stderr.isatty():
        click.echo(f"{line} ...", err=True)


def _certainty(answer: Answer) -> str:
    """The option's probability and the next one's, after the reasoning that was written."""
    if not answer.options or answer.choice not in answer.options:
        return ""
    others = {letter: p for letter, p in answer.options.items() if letter != answer.choice}
    following = max(others, key=lambda letter: others[letter], default=None)
    behind = f"; next {following} {others[following]:.1%}" if following else ""
    return f"  [{answer.options[answer.choice]:.1%}{behind}; margin {answer.margin:.1%}]"
