// A program for Apache's Go client, as tests/interop/foreign.py asks for it:
//
//	driver send NAMESRV TOPIC COUNT                  each message once, eight at a time; what failed is told
//	driver push NAMESRV TOPIC GROUP COUNT SECONDS    push consumer until COUNT distinct bodies or SECONDS
//
// JSON lines on standard output, the last one a summary.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
	"github.com/apache/rocketmq-client-go/v2/rlog"
)

const senders = 8

var output sync.Mutex

func say(fields map[string]any) {
	output.Lock()
	defer output.Unlock()
	line, err := json.Marshal(fields)
	check(err)
	fmt.Println(string(line))
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	check(err)
	return n
}

func send(namesrv, topic string, count int) {
	p, err := rocketmq.NewProducer(
		producer.WithNsResolver(primitive.NewPassthroughResolver([]string{namesrv})),
		producer.WithGroupName("GO_PRODUCER"),
	)
	check(err)
	check(p.Start())
	var lock sync.Mutex
	next, done := 0, 0
	failed := []string{}
	one := func() bool {
		lock.Lock()
		n := next
		next++
		lock.Unlock()
		if n >= count {
			return false
		}
		body := fmt.Sprintf("body-%d", n)
		message := primitive.NewMessage(topic, []byte(body)).WithTag("TagA").WithKeys([]string{fmt.Sprintf("key-%d", n)})
		result, err := p.SendSync(context.Background(), message)
		lock.Lock()
		if err != nil || result.Status != primitive.SendOK {
			failed = append(failed, body)
			say(map[string]any{"event": "error", "body": body, "error": fmt.Sprint(err, result)})
		}
		done++
		if done%100 == 0 {
			say(map[string]any{"event": "sent", "count": done})
		}
		lock.Unlock()
		return true
	}
	var group sync.WaitGroup
	for i := 0; i < senders; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for one() {
			}
		}()
	}
	group.Wait()
	say(map[string]any{"event": "done", "failed": failed})
	check(p.Shutdown())
}

func push(namesrv, topic, group string, count int, seconds int) {
	c, err := rocketmq.NewPushConsumer(
		consumer.WithNsResolver(primitive.NewPassthroughResolver([]string{namesrv})),
		consumer.WithGroupName(group),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
	)
	check(err)
	var lock sync.Mutex
	seen := map[string]int{}
	enough := make(chan struct{})
	var once sync.Once
	handle := func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		lock.Lock()
		defer lock.Unlock()
		for _, message := range messages {
			seen[string(message.Body)]++
		}
		if len(seen) >= count {
			once.Do(func() { close(enough) })
		}
		return consumer.ConsumeSuccess, nil
	}
	check(c.Subscribe(topic, consumer.MessageSelector{Type: consumer.TAG, Expression: "TagA || TagB"}, handle))
	check(c.Start())
	say(map[string]any{"event": "started"})
	select {
	case <-enough:
	case <-time.After(time.Duration(seconds) * time.Second):
	}
	time.Sleep(500 * time.Millisecond)
	lock.Lock()
	deliveries, bodies := 0, []string{}
	for body, times := range seen {
		deliveries += times
		bodies = append(bodies, body)
	}
	lock.Unlock()
	say(map[string]any{"event": "done", "deliveries": deliveries, "bodies": bodies})
	check(c.Shutdown())
}

func main() {
	rlog.SetLogLevel("error")
	check(rlog.SetOutputPath(os.Getenv("CLIENT_LOG")))
	switch os.Args[1] {
	case "send":
		send(os.Args[2], os.Args[3], number(os.Args[4]))
	case "push":
		push(os.Args[2], os.Args[3], os.Args[4], number(os.Args[5]), number(os.Args[6]))
	}
}
