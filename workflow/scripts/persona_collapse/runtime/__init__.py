"""What every job shares: logs, devices, the engine that serves many chains, what reruns."""
