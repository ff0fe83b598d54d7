from runs import finished, project  # noqa: F401


def pytest_terminal_summary(terminalreporter):
    """Report how many injected faults were repaired, byte for byte."""
    cases = {
        state: [
            report
            for report in terminalreporter.stats.get(state, [])
            if "/test_faults.py" in report.nodeid
            and "after_many_faults_at_once" not in report.nodeid
            and getattr(report, "when", "call") == "call"
        ]
        for state in ("passed", "failed")
    }
    tried = sum(map(len, cases.values()))
    if tried:
        terminalreporter.write_line(
            f"faults: {tried} tried, {len(cases['passed'])} made good byte for byte"
        )
