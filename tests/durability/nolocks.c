/* A file system without locks: each request for one is refused, as by an NFS mount with no lock daemon.
 *
 * cc -shared -fPIC -o nolocks.so nolocks.c -ldl      LD_PRELOAD=nolocks.so python ...
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>

#define WITHOUT_LOCKS(name) \
    int name(int fd, int command, ...) \
    { \
        static int (*real)(int, int, ...); \
        if (!real) \
            real = (int (*)(int, int, ...))dlsym(RTLD_NEXT, #name); \
        va_list rest; \
        va_start(rest, command); \
        void *argument = va_arg(rest, void *); \
        va_end(rest); \
        if (command == F_SETLK || command == F_SETLKW) \
            return errno = ENOLCK, -1; \
        return real(fd, command, argument); \
    }

WITHOUT_LOCKS(fcntl)
WITHOUT_LOCKS(fcntl64)
