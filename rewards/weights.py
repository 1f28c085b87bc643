"""Before a run: are the rewards' weights on this machine, and if not, can they be downloaded? Torch-free.

A server downloads missing weights when it is built. If that cannot work, the run is refused before any process starts,
after requests that together take at most `PROBE_S` seconds. Left out: other machines of a cluster, and servers with a
`runtime_env`: this machine does not know their folders and network.
"""

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlparse

from rl.config.reward import RewardSection, WeightFile
from rl.errors import MissingInput

PROBE_S = 3.0


def check_weights(sections: Sequence[RewardSection], *, probe_s: float = PROBE_S) -> None:
    """Refuses rewards with weights that are not on this machine and cannot be downloaded to it.

    Raises:
        MissingInput: names each reward and file, where it was looked for, its URL, and what to do.
        ValueError: a section names something that does not exist; the message is that of `check_reward`.
    """
    missing = {section.label: _missing(section) for section in sections}
    failures = unreachable((file.url for files in missing.values() for file in files), probe_s)
    lost = [(label, file) for label, files in missing.items() for file in files if file.url in failures]
    if lost:
        lines = (f"    {label}: {_sought(file)} ({failures[file.url]}); {_remedy(file)}" for label, file in lost)
        raise MissingInput("\n".join(["weights are not on this machine and cannot be downloaded:", *lines]))


def weights_texts(sections: Sequence[RewardSection], *, probe_s: float = PROBE_S) -> dict[str, str]:
    """For `isrl plan`: name of a reward -> whether its weights are found, will be downloaded, or are missing."""
    missing = {section.name: _missing(section) for section in sections}
    failures = unreachable((file.url for files in missing.values() for file in files), probe_s)
    return {section.name: _text(section, missing[section.name], failures) for section in sections}


def missing_text(files: Sequence[WeightFile]) -> str:
    """One line on files that could not be loaded or downloaded."""
    return "; ".join(f"{_sought(file)}; {_remedy(file)}" for file in files)


def unreachable(urls: Iterable[str], probe_s: float) -> Mapping[str, str]:
    """URL -> why its host does not answer, for hosts that do not within `probe_s` seconds.

    All hosts are asked at once, by a HEAD request through the environment's proxies. Any answer counts as reached, even
    a refusal: the host's answer to the real request is for the server to report.
    """
    by_host: dict[str, list[str]] = {}
    for url in urls:
        by_host.setdefault(urlparse(url).netloc, []).append(url)
    reasons = {host: f"no answer from {host} within {probe_s:g} s" if host else "no such file" for host in by_host}
    asked = [
        # no timeout applies to a name server that does not answer: such a thread is left behind
        threading.Thread(target=_ask, args=(same[0], host, probe_s, reasons), daemon=True)
        for host, same in by_host.items()
        if host
    ]
    end = time.monotonic() + probe_s
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join(max(0.0, end - time.monotonic()))
    found = dict(reasons)
    return {url: found[host] for host, same in by_host.items() if host in found for url in same}


def _ask(url: str, host: str, probe_s: float, reasons: dict[str, str]) -> None:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=probe_s).close()
    except urllib.error.HTTPError:
        pass
    except OSError as error:
        reasons[host] = f"{host}: {getattr(error, 'reason', error)}"
        return
    reasons.pop(host, None)


def _missing(section: RewardSection) -> list[WeightFile]:
    """What the server of `section` would have to download; empty if unknown."""
    try:
        files = None if section.runtime_env is not None else section.weights()
    except ValueError as error:
        raise ValueError(f"{section.label}: {error}") from error
    return [file for file in files or () if not file.found]


def _text(section: RewardSection, missing: Sequence[WeightFile], failures: Mapping[str, str]) -> str:
    files = section.weights()
    if files is None or section.runtime_env is not None:
        return "weights: not known before its server is built"
    if not files:
        return "no weights"
    lost = [f"{file.name} ({failures[file.url]})" for file in missing if file.url in failures]
    if lost:
        return f"weights MISSING here, and no download: {', '.join(lost)}"
    return f"weights will be downloaded: {', '.join(file.name for file in missing)}" if missing else "weights found"


def _sought(file: WeightFile) -> str:
    elsewhere = f" and could not be had from {file.url}" if file.url else ""
    return f"{file.name} is not at {file.path}{elsewhere}"


def _remedy(file: WeightFile) -> str:
    option = f", write options: {{{file.option}: FILE}}" if file.option and file.url else ""
    return f"put it there{option}, or use another metric"
