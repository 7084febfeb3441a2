"""New tokens for genes that a vocabulary lacks, which start from scratch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from scgpt_tools.data.opening import match_rows
from scgpt_tools.tokens.coverage import some

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scgpt_tools.data.opening import Matching
    from scgpt_tools.data.rows import Rows
    from scgpt_tools.tokens.tokenizer import TokenizerConfig
    from scgpt_tools.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


def with_all_genes(rows: Rows, vocabulary: Vocabulary, config: TokenizerConfig, matching: Matching) -> Vocabulary:
    """A vocabulary that has a token for each named column; some of them have to match before."""
    # What does not match is about to, so that nobody needs to be warned of it.
    coverage = match_rows(rows, vocabulary, config, matching, min_coverage=0.0).coverage
    return with_tokens(coverage.missing, vocabulary)


def with_tokens(names: Iterable[str], vocabulary: Vocabulary) -> Vocabulary:
    """A vocabulary with those of some names that it lacks; a message says what they are worth."""
    added = [name for name in dict.fromkeys(names) if name not in vocabulary]
    if not added:
        return vocabulary
    logger.info(
        "Adding %d %s to the vocabulary for genes that it lacks: %s. They start from scratch, so the model knows of them what "
        "this training shows.",
        len(added),
        "token" if len(added) == 1 else "tokens",
        some(tuple(added)),
    )
    return vocabulary.extended(added)
