"""What everything else stands on: files, texts, processes, threads, devices, packed rows."""
