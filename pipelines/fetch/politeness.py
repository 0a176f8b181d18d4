"""Whether a request may be sent: blocked hosts, names that do not resolve, robots.txt and its delays."""

from __future__ import annotations

from pairloom.pipelines.fetch.circuit_breaker import CircuitBreaker
from pairloom.pipelines.fetch.robots import RobotsCache, RobotsText, Rules, request_interval_s, rules_of
from pairloom.pipelines.fetch.scheduler import Host, Job
from pairloom.pipelines.fetch.transfer import DEFAULT_USER_AGENT, Response
from pairloom.pipelines.sources.urls import robots_url
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError
from pairloom.schemas.recipes.curate import FetchRecipe


class CrawlPolicy:
    """Keep one per process: cached robots.txt rules serve the next shard too."""

    def __init__(self, recipe: FetchRecipe, breaker: CircuitBreaker) -> None:
        self._obeys_robots = recipe.obey_robots_txt
        self._user_agent = recipe.user_agent or DEFAULT_USER_AGENT
        self._robots = RobotsCache()
        self._breaker = breaker

    @property
    def robots(self) -> RobotsCache | None:
        """Rules by origin; None if robots.txt is not obeyed."""
        return self._robots if self._obeys_robots else None

    def has_rules(self, job: Job) -> bool:
        """Whether `refusal` can be called; if not, robots.txt must be fetched first."""
        host = job.host
        if host.rules is None and self._obeys_robots and not job.is_robots:
            rules = self._robots.get(host.origin)
            if rules is not None:
                self._set_rules(host, rules)
            else:
                return host.blocked_by is not None or self._breaker.dns_failure(host.name) is not None
        return True

    def refusal(self, job: Job) -> SampleError | None:
        """The reason why a job must not be sent, or None."""
        host = job.host
        error = host.blocked_by or self._breaker.dns_failure(host.name)
        if error is not None or job.is_robots or not self._obeys_robots or host.rules is None:
            return error
        if isinstance(host.rules, SampleError):
            return host.rules
        if not host.rules.can_fetch(robots_url(job.url), self._user_agent):
            return SampleError(DropReason.ROBOTS_TXT, f"robots.txt of {host.origin} forbids it")
        return None

    def store_rules(self, host: Host, response: Response) -> RobotsText:
        """Take the rules from a response for robots.txt (RFC 9309, section 2.3.1).

        A 4xx status allows all; a robots.txt that cannot be fetched (5xx, no connection) forbids all for now.
        """
        text: RobotsText = b""
        if response.body is not None:
            with response.body as body:
                text = body.read()
        elif response.error is not None and (not 200 <= response.status < 500 or response.is_incomplete):
            text = SampleError(response.error.drop_reason, f"robots.txt of {host.origin}: {response.error}")
        elif response.status == 429:
            text = SampleError(DropReason.HTTP_RATE_LIMITED, f"robots.txt of {host.origin}: HTTP status 429")
        rules = rules_of(text)
        self._robots.put(host.origin, rules)
        self._set_rules(host, rules)
        return text

    def _set_rules(self, host: Host, rules: Rules) -> None:
        host.rules = rules
        host.interval_s = max(host.interval_s, request_interval_s(rules, self._user_agent))

    def forget_failures(self) -> None:
        """Forget robots.txt files that could not be fetched: the network was down."""
        self._robots.forget_failures()
