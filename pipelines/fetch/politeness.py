"""What may be asked of a host: names that do not resolve, hosts that were given up, robots.txt and its pace."""

from __future__ import annotations

from pairloom.pipelines.fetch.dns_failures import LostNames
from pairloom.pipelines.fetch.robots import RobotsCache, RobotsText, Rules, rules_of, seconds_between
from pairloom.pipelines.fetch.scheduler import Host, Job
from pairloom.pipelines.fetch.transfer import DEFAULT_USER_AGENT, Answer
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError
from pairloom.schemas.recipes.curate import FetchRecipe


class Manners:
    """Keep one a process: what it knows serves the next shard too."""

    def __init__(self, recipe: FetchRecipe) -> None:
        self._obeys_robots = recipe.obey_robots_txt
        self._user_agent = recipe.user_agent or DEFAULT_USER_AGENT
        self._robots = RobotsCache()
        self._lost_names = LostNames()

    @property
    def robots(self) -> RobotsCache | None:
        """Rules by origin; None where robots.txt is not obeyed."""
        return self._robots if self._obeys_robots else None

    def knows_rules(self, job: Job) -> bool:
        """Whether it is known if a job may start; where not, robots.txt has to be fetched first."""
        host = job.host
        if host.rules is None and self._obeys_robots and not job.is_robots:
            rules = self._robots.get(host.origin)
            if rules is not None:
                self._set_rules(host, rules)
            else:
                return host.given_up is not None or self._lost_names.get(host.name) is not None
        return True

    def refusal(self, job: Job) -> SampleError | None:
        """Why a job may not start, or None."""
        host = job.host
        error = host.given_up or (self._lost_names.get(host.name) if self._lost_names else None)
        if error is not None or job.is_robots or not self._obeys_robots or host.rules is None:
            return error
        if isinstance(host.rules, SampleError):
            return host.rules
        if not host.rules.can_fetch(job.url, self._user_agent):
            return SampleError(DropReason.ROBOTS_TXT, f"robots.txt of {host.origin} forbids it")
        return None

    def learn_rules(self, host: Host, answer: Answer) -> RobotsText:
        """RFC 9309: no robots.txt (4xx) allows all; one that cannot be had (5xx, no connection) forbids for now."""
        text: RobotsText = b""
        if answer.body is not None:
            with answer.body as body:
                text = body.read()
        elif answer.error is not None and (not 200 <= answer.status < 500 or answer.is_lost):
            text = SampleError(answer.error.drop_reason, f"robots.txt of {host.origin}: {answer.error}")
        elif answer.status == 429:
            text = SampleError(DropReason.HTTP_RATE_LIMITED, f"robots.txt of {host.origin}: HTTP status 429")
        rules = rules_of(text)
        self._robots.put(host.origin, rules)
        self._set_rules(host, rules)
        return text

    def _set_rules(self, host: Host, rules: Rules) -> None:
        host.rules = rules
        host.interval_s = max(host.interval_s, seconds_between(rules, self._user_agent))

    def lose_name(self, host: Host, error: SampleError) -> None:
        """Remember that a name does not resolve."""
        self._lost_names.put(host.name, error)

    def forget_failures(self) -> None:
        """The network was down: names and robots.txt that could not be had may be fine."""
        self._robots.forget_failures()
        self._lost_names.clear()
