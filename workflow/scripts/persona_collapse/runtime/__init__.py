"""What all jobs share: logs, devices, the engine that serves many chains, code hashes."""
