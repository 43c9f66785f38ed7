"""Which addresses media may be fetched from, by the rules of orchestrator/net."""
