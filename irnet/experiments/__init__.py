"""What is asked of several runs together: the demonstration, the ablations. A single run is engine's."""
