"""What every test runs under."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadline: a machine that also trains or runs a node would fail tests at random.
settings.register_profile(
    "titlecast", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("titlecast")
