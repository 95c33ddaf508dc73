"""Plugins in processes of their own.

The service starts a reaper, the reaper starts the main program that runs the plugin, and the service calls that by
frames on a Unix socket:

    reaper.py          ends all that the plugin has started when the service or the main program ends
    main.py            the main program of the process
    arguments.py       the main program's arguments
    server.py          in the process: one plugin, its sessions, and the answers to the service's calls
    launch.py          how a process is started: its environment, its limits, its folder
    interpreters.py    plugins in environments of their own; describe_environment.py is the program that asks one
    process.py         one process: start, handshake, calls, memory, end
    log_relay.py       its log lines, as lines of the service's log
    restart_policy.py  when a process is started again or replaced
    health.py          the check of a process's health
    supervisor.py      keeps a process running
    client.py          what the service calls in place of a plugin
    report.py          ListPlugins: the plugins and the state of their processes
    protocol.py        the messages between the two
    methods.py         the calls between the two
    frames.py          the frames that carry them: bytes in, frames out
    frame_port.py      one end of the connection: bounds, turns, backpressure
    connection.py      the service's end: calls and streams
    answering.py       the process's end
    discovery.py       the registry of all installed plugins; manifests of third-party ones are read in other processes
"""
