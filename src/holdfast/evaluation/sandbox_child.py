"""The inside of the sandbox: a script that isolates itself, runs one program and proves that it ran to the end.

It runs as three processes. The *outer* one enters new namespaces; the *keeper* is process 1 of the new process
namespace, so that nothing outlives it; the *inner* one gives up its rights, runs the program and, if the last line
was reached without an exception, writes the secret that it was given on standard input.

Arguments: ``level work_folder result_descriptor seconds memory_mb``. Standard library only; started without `site`.
"""

import _thread
import ctypes
import os
import resource
import signal
import sys
import types

NEW_MOUNTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NETWORK = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
NOSUID, NODEV, NOEXEC, BIND, RECURSIVE, PRIVATE, DETACH = 2, 4, 8, 4096, 16384, 1 << 18, 2
SET_DEATH_SIGNAL, SET_NO_NEW_PRIVILEGES = 1, 38
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1
CAPABILITY_VERSION = 0x20080522
PROGRAM = "program.py"
MEGABYTE = 1 << 20
NAMESPACES = ("root-namespaces", "user-namespaces")
LIBC = ctypes.CDLL(None, use_errno=True)


class Job:
    """What was asked for, and the user id that the program will run as."""

    def __init__(self, arguments: list[str], data: bytes) -> None:
        self.level, self.work = arguments[0], arguments[1]
        self.result = int(arguments[2])
        self.seconds, self.memory_mb = float(arguments[3]), int(arguments[4])
        self.token, self.source = data[:32], data[32:]
        self.other_user = self.level in {"root-namespaces", "other-user"}
        self.owner = (1 << 28) + int.from_bytes(os.urandom(3), "big") if self.other_user else os.getuid()


def call(what: str, result: int) -> None:
    """Stop with a sentence where a system call failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2)."""
    arguments = (source.encode(), target.encode(), kind.encode(), flags, options.encode())
    call(f"mount {target}", LIBC.mount(*arguments))


def enter_namespaces(level: str) -> None:
    """New mounts, processes, network and IPC; as an ordinary user inside a user namespace of one's own."""
    user, group = os.getuid(), os.getgid()
    extra = NEW_USER if level == "user-namespaces" else 0
    call("unshare", LIBC.unshare(NEW_MOUNTS | NEW_IPC | NEW_PIDS | NEW_NETWORK | extra))
    if extra:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def closed_ancestor(path: str) -> str:
    """The first folder on the way to ``path`` that other users may not enter, or an empty string."""
    parts = path.split("/")
    for end in range(2, len(parts) + 1):
        folder = "/".join(parts[:end])
        if not os.stat(folder).st_mode & 1:
            return folder
    return ""


def open_the_way(work: str) -> None:
    """Let another user reach the interpreter's library where it lies below a closed folder, and nothing else there."""
    library = os.path.realpath(sys.base_prefix)
    closed = closed_ancestor(library)
    if closed:
        mount(library, work, "", BIND | RECURSIVE)
        mount("tmpfs", closed, "tmpfs", NOSUID | NODEV, "mode=755,size=1m")
        os.makedirs(library)
        mount(work, library, "", BIND | RECURSIVE)
        call("umount", LIBC.umount2(work.encode(), DETACH))


def private_file_system(job: Job) -> None:
    """Everything read-only; a fresh /proc; a small memory file system as the working folder."""
    mount("none", "/", "", RECURSIVE | PRIVATE)
    if job.level == "root-namespaces":
        open_the_way(job.work)
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY, 0, 0, 0)
    where = (ctypes.c_long(MOUNT_SETATTR), AT_FDCWD, b"/", AT_RECURSIVE)
    call("mount_setattr", LIBC.syscall(*where, ctypes.byref(attributes), ctypes.c_size_t(32)))
    mount("proc", "/proc", "proc", NOSUID | NODEV | NOEXEC)
    options = f"mode=700,size=64m,nr_inodes=4096,uid={job.owner},gid={job.owner if job.other_user else os.getgid()}"
    mount("tmpfs", job.work, "tmpfs", NOSUID | NODEV, options)


def give_up_rights(job: Job) -> None:
    """Another user id where we are root, else no capabilities; and no way back through set-user-id programs."""
    if job.other_user:
        os.setgroups([])
        os.setresgid(job.owner, job.owner, job.owner)
        os.setresuid(job.owner, job.owner, job.owner)
    elif job.level == "user-namespaces":
        header, nothing = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
        call("capset", LIBC.capset(header, nothing))
    if sys.platform == "linux":
        call("prctl", LIBC.prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))


def limit(job: Job) -> None:
    """Limits that the kernel enforces on the program and on every process it starts."""
    limits = {
        resource.RLIMIT_CPU: int(job.seconds) + 1,
        resource.RLIMIT_AS: job.memory_mb * MEGABYTE,
        resource.RLIMIT_FSIZE: 16 * MEGABYTE,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    if job.level != "limits-only":
        limits[resource.RLIMIT_NPROC] = 32
    for name, wanted in limits.items():
        hard = resource.getrlimit(name)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(name, (value, value))


def describe(problem: BaseException) -> str:
    """One line about an exception whose text may be hostile."""
    line, trace = 0, problem.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == PROGRAM else line
        trace = trace.tb_next
    try:
        text = str(problem)[:160].replace("\n", " ")
    except BaseException:  # noqa: BLE001 - the program wrote this __str__; whatever it raises is its failure
        text = "(no text)"
    return f"{type(problem).__name__}{': ' if text else ''}{text}{f' (line {line})' if line else ''}"


def execute(source: bytes, report: list[str], finished: _thread.LockType) -> None:
    """Run the program as ``__main__`` and note whether it reached its end."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        exec(compile(source, PROGRAM, "exec"), module.__dict__)
        report.append("")
    except BaseException as problem:  # noqa: BLE001 - every way out but the last line is a failure
        report.append(describe(problem))
    finally:
        finished.release()


def inner(job: Job) -> None:
    """Run the program in a thread, so that no frame below it leads to the secret, and write what came of it."""
    os.chdir(job.work)
    give_up_rights(job)
    limit(job)
    write, leave, result, token = os.write, os._exit, job.result, job.token
    report: list[str] = []
    finished = _thread.allocate_lock()
    finished.acquire()
    _thread.start_new_thread(execute, (job.source, report, finished))
    finished.acquire()
    write(result, token if report == [""] else report[0].encode("utf-8", "replace"))
    leave(0)


def keep(job: Job) -> None:
    """Start the inner process, wait for it, and add how it ended and whether the working folder is still whole."""
    if sys.platform == "linux":
        call("prctl", LIBC.prctl(SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0))
    if job.level in NAMESPACES:
        private_file_system(job)
    program = os.path.join(job.work, PROGRAM)
    with open(program, "wb") as file:
        file.write(job.source)
    if job.level == "other-user":
        os.chown(job.work, job.owner, job.owner)
    child = os.fork()
    if child == 0:
        inner(job)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(job.result, f"\n|{status}|{int(os.path.exists(program))}".encode())
    os._exit(0)


def main() -> None:
    """Read the secret and the program, isolate, and wait for the keeper."""
    job = Job(sys.argv[1:], sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if job.level in NAMESPACES:
        enter_namespaces(job.level)
    keeper = os.fork()
    if keeper == 0:
        keep(job)
    os.waitpid(keeper, 0)


if __name__ == "__main__":
    main()
