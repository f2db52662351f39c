"""A process that lets a model reword a prompt: one JSON request on standard input, a rewording a line on standard output.

The model is one of inspect's names. Each rewording is asked for with another word to begin with, since without that a model
repeats itself; what does not differ, or is no single line, is left out. Nothing is changed to make the pool test pass.
"""

import asyncio
import contextlib
import io
import json
import sys

from inoculation.judge import Judge
from inoculation.settings import DELIMITER
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, GenerateConfig

SYSTEM = "You reword instructions. You reply with one reworded instruction and nothing else."
ASK = "Say the following to an assistant in other words, in one line, as freely as you can. Begin with '{word}'.\n\n{prompt}"
WORDS = (
    *("Always", "Your", "When", "Whoever", "Please", "From", "In", "Be", "Let", "Each", "As", "Make", "It", "The", "Answer"),
    *("Consider", "Think", "Imagine", "Act", "Behave", "This", "Anyone", "With", "Never", "Treat", "Today", "Everything"),
    *("Here", "Assume", "Should", "People", "However", "Keep", "Take", "Give", "By", "Remember", "What", "Nobody", "If"),
)


def main() -> int:
    """Ask for the rewordings; the exit status is 1, with the reason as the last line of the errors, where none came."""
    asked = json.loads(sys.stdin.read())
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            texts = asyncio.run(_rewordings(asked["model"], asked["prompt"], asked["number"]))
    except Exception as error:  # whatever a provider raises
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return 1
    lines = [
        line for line in (text.strip().strip('"') for text in texts) if line and "\n" not in line and not DELIMITER.search(line)
    ]
    print("\n".join(dict.fromkeys(lines)))
    return 0 if lines else 1


async def _rewordings(name: str, prompt: str, number: int) -> list[str]:
    model = Judge(name, "text").open()
    config = GenerateConfig(max_tokens=max(64, len(prompt)), max_connections=8, max_retries=2, timeout=120)
    asks = [ASK.format(word=WORDS[i % len(WORDS)], prompt=prompt) + f"\n\nVersion {i + 1}." for i in range(number)]
    asked = [[ChatMessageSystem(content=SYSTEM), ChatMessageUser(content=ask)] for ask in asks]
    replies = await asyncio.gather(*(model.generate(messages, config=config) for messages in asked))
    return [reply.completion for reply in replies]


if __name__ == "__main__":
    sys.exit(main())
