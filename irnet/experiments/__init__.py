"""What is asked of several runs together: the demonstration. A single run is engine's."""
