/* Runs the model on the pixels of stdin, which come behind the weights if these are not inside, and writes its
   outputs to stdout, with nothing but Linux: no C library. */
#include "model.h"

static uint8_t input[MOBILENET_INPUT_BYTES];
static float output[MOBILENET_OUTPUT_FLOATS];
static _Alignas(MOBILENET_SCRATCH_ALIGNMENT) unsigned char scratch[MOBILENET_SCRATCH_BYTES];

#ifdef MOBILENET_WEIGHTS_BYTES
static _Alignas(MOBILENET_WEIGHTS_ALIGNMENT) unsigned char weights[MOBILENET_WEIGHTS_BYTES];
#define RUN(input, output, scratch) mobilenet_run(input, output, scratch, weights)
#else
#define RUN mobilenet_run
#endif

#if defined(__x86_64__)
enum { READ = 0, WRITE = 1, EXIT = 60 };
#define START __attribute__((force_align_arg_pointer))
static long call(long number, long first, void *second, long third) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(first), "S"(second), "d"(third)
                     : "rcx", "r11", "memory");
    return result;
}
#else
#define START
#if defined(__aarch64__)
enum { READ = 63, WRITE = 64, EXIT = 93 };
#define REGISTER(n) "x" #n
#define NUMBER "x8"
#define TRAP "svc 0"
#elif defined(__riscv)
enum { READ = 63, WRITE = 64, EXIT = 93 };
#define REGISTER(n) "a" #n
#define NUMBER "a7"
#define TRAP "ecall"
#else
enum { READ = 3, WRITE = 4, EXIT = 1 };
#define REGISTER(n) "r" #n
#define NUMBER "r7"
#define TRAP "svc 0"
#endif
static long call(long number, long first, void *second, long third) {
    register long a __asm__(REGISTER(0)) = first;
    register void *b __asm__(REGISTER(1)) = second;
    register long c __asm__(REGISTER(2)) = third;
    register long n __asm__(NUMBER) = number;
    __asm__ volatile(TRAP : "+r"(a) : "r"(b), "r"(c), "r"(n) : "memory");
    return a;
}
#endif

static void receive(unsigned char *data, unsigned long size) {
    for (unsigned long done = 0, more; done < size; done += more) {
        more = call(READ, 0, data + done, size - done);
        if (more == 0 || more > size) call(EXIT, 2, 0, 0);
    }
}

START void _start(void) {
#ifdef MOBILENET_WEIGHTS_BYTES
    receive(weights, sizeof weights);
#endif
    receive(input, sizeof input);
    for (unsigned long i = 0; i < sizeof scratch; i++) scratch[i] = 255; /* NaN */
    RUN(input, output, scratch);
    call(EXIT, call(WRITE, 1, output, sizeof output) == sizeof output ? 0 : 3, 0, 0);
}
