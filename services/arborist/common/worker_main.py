"""`python -m` of a worker; loads neither torch nor gRPC, whose variables are set later."""

from __future__ import annotations

from collections.abc import Callable

from arborist.core.errors import ArboristError


def run_main(run: Callable[[], None]) -> None:
    """Runs `python -m` of a worker; whatever fails is one line on stderr.

    Args:
        run: Serves until told to stop.
    Raises:
        SystemExit: It failed (1), or Ctrl-C came before it served (130).
    """
    try:
        run()
    except ArboristError as error:
        raise SystemExit(f"arborist: {error.message}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
